// What the bar that saves captions has to say.

import assert from "node:assert/strict";
import { test } from "node:test";

import { noticeOf } from "../../web/save_bar.mjs";

const folder = (more = {}) => ({ conflict: null, saveError: "", readOnlyReason: "", wasQueuedUnsaved: false, ...more });

for (const [more, unsaved, expected] of [
  [{}, 0, /^$/],
  [{}, 2, /^$/],
  [{ conflict: { "a.png": "x", "b.png": null }, saveError: "failed" }, 2, /^2 captions changed on disk since you read them.*: a\.png, b\.png$/],
  [{ saveError: "failed", readOnlyReason: "read-only disk" }, 1, /^failed$/],
  [{ readOnlyReason: "read-only disk", wasQueuedUnsaved: true }, 1, /^read-only disk$/],
  [{ readOnlyReason: "read-only disk" }, 0, /^$/],
  [{ wasQueuedUnsaved: true }, 1, /^The run was queued without these edits/],
]) {
  test(`${unsaved} unsaved captions and ${JSON.stringify(more)} are noticed as ${expected}`, () => {
    assert.match(noticeOf(folder(more), unsaved), expected);
  });
}
