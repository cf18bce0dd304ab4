// The bar that saves edited captions: how many are unsaved, what went wrong, and the decision after a conflict.

import { button, element } from "./dom.mjs";
import { plural } from "./format.mjs";

const QUEUED_UNSAVED = "The run was queued without these edits: it reads the captions on disk. Save them and press Run again.";

/**
 * Makes the bar.
 * @param {() => import("./caption_folder.mjs").CaptionFolder | null} getFolder
 * @param {import("./server.mjs").Server} server
 * @param {() => void} onConflict called when saving needs a decision
 * @returns {{root: HTMLElement, paint: () => void}} paint: to be called after each change of the folder
 */
export function saveBar(getFolder, server, onConflict = () => {}) {
  const count = element("span", { className: "kiln-dot" });
  const notice = element("div", { className: "kiln-notice" });
  const run = async (isOverwriting) => {
    const folder = getFolder();
    save.disabled = true;
    await folder.save(server, isOverwriting);
    if (folder.conflict) onConflict();
  };
  const save = button("Save captions", "Writes the captions beside their pictures", () => run(false), "kiln-main");
  const overwrite = button("Overwrite with mine", "Writes your captions over those on disk", () => run(true));
  const dropEdits = () => getFolder().takeFromDisk();
  const takeFromDisk = button("Take those on disk", "Drops your edits of these captions; undo brings them back", dropEdits);
  const root = element("div", { className: "kiln-save" }, [count, save, notice, overwrite, takeFromDisk]);
  return {
    root,
    paint() {
      const folder = getFolder();
      const unsaved = folder?.captions.edits.length ?? 0;
      const hasConflict = Object.keys(folder?.conflict ?? {}).length > 0;
      notice.textContent = folder ? noticeOf(folder, unsaved) : "";
      count.textContent = unsaved ? `● ${unsaved} unsaved` : "";
      save.hidden = !unsaved || hasConflict;
      save.disabled = Boolean(folder?.readOnlyReason);
      notice.hidden = !notice.textContent;
      overwrite.hidden = takeFromDisk.hidden = !hasConflict;
      root.hidden = !unsaved && notice.hidden;
    },
  };
}

/** The most important thing to know about saving; "" where there is nothing. */
export function noticeOf(folder, unsaved) {
  const changed = Object.keys(folder.conflict ?? {});
  if (changed.length) {
    return `${plural(changed.length, "caption")} changed on disk since you read them, and nothing was saved: ${changed.join(", ")}`;
  }
  if (folder.saveError || !unsaved) return folder.saveError;
  return folder.readOnlyReason || (folder.wasQueuedUnsaved ? QUEUED_UNSAVED : "");
}
