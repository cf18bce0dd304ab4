// A folder's captions: scanned, edited, saved, and what happens where the disk changed meanwhile.

import assert from "node:assert/strict";
import { test } from "node:test";

import { CaptionFolder, captionFolder, unsavedElsewhere } from "../../web/caption_folder.mjs";
import { ServerError } from "../../web/server.mjs";

const PICTURES = [{ name: "a", caption: "a cat" }, { name: "b", caption: "" }];

/** A folder with captions, and how often its watchers were called. */
function folderWith(changes = {}) {
  const folder = new CaptionFolder("cats");
  folder.captions.load(PICTURES);
  let calls = 0;
  folder.watch(() => (calls += 1));
  folder.captions.change(changes);
  return { folder, calls: () => calls };
}

/** A server that answers with the given values in turn, or throws those that are errors. */
function serverWith(...answers) {
  const requests = [];
  const next = async (path, data) => {
    requests.push([path, data]);
    const answer = answers.shift();
    if (answer instanceof Error) throw answer;
    return answer;
  };
  return { requests, get: next, post: next };
}

test("a scan goes on until the pictures come, and reports its progress", async () => {
  const { folder, calls } = folderWith({ a: "mine" });
  const pictures = [{ name: "a", caption: "theirs" }, { name: "c", caption: "new" }];
  const server = serverWith({ done: 1, total: 2 }, { done: 2, total: 2, pictures, locked: "read-only disk" });
  const progress = [];
  const scan = await folder.scan(server, { folder: "cats" }, (done, total) => progress.push([done, total]));
  assert.equal(scan.pictures, pictures);
  assert.deepEqual(progress, [[1, 2], [2, 2]]);
  assert.deepEqual(server.requests, Array(2).fill(["/kiln/dataset", { folder: "cats" }]));
  assert.deepEqual([folder.captions.text("a"), folder.captions.text("c")], ["mine", "new"]);
  assert.deepEqual([folder.readOnlyReason, calls()], ["read-only disk", 1]);
});

test("a scan that is given up changes nothing", async () => {
  const { folder, calls } = folderWith();
  assert.equal(await folder.scan(serverWith({ done: 2, total: 2, pictures: [] }), {}, () => false), null);
  assert.deepEqual([folder.captions.names, calls()], [["a", "b"], 0]);
});

test("saving sends the edits with what they were made of, and keeps those that failed", async () => {
  const { folder, calls } = folderWith({ a: "a black cat", b: "a dog" });
  const server = serverWith({ saved: ["a"], failed: { b: "b.txt: the disk is full" } });
  await folder.save(server);
  const captions = [{ name: "a", caption: "a black cat", before: "a cat" }, { name: "b", caption: "a dog", before: "" }];
  assert.deepEqual(server.requests, [["/kiln/dataset/captions", { folder: "cats", captions, overwrite: false }]]);
  assert.deepEqual(folder.captions.edits.map(({ name }) => name), ["b"]);
  assert.deepEqual([folder.saveError, folder.conflict, calls()], ["b.txt: the disk is full", null, 1]);
});

test("without edits nothing is sent", async () => {
  const server = serverWith();
  await folderWith().folder.save(server);
  assert.deepEqual(server.requests, []);
});

test("a caption that changed on disk waits for a decision; overwriting sends it again", async () => {
  const { folder } = folderWith({ a: "mine" });
  const server = serverWith(new ServerError("Changed.", 409, { changed: { a: "theirs" } }), { saved: ["a"], failed: {} });
  await folder.save(server);
  assert.deepEqual([folder.conflict, folder.saveError], [{ a: "theirs" }, ""]);
  await folder.save(server, true);
  assert.deepEqual([folder.conflict, server.requests[1][1].overwrite, folder.captions.edits], [null, true, []]);
});

test("taking the captions on disk drops those edits; undo brings them back, and what cannot be read stays", async () => {
  const { folder } = folderWith({ a: "mine", b: "mine too" });
  folder.conflict = { a: "theirs", b: null };
  folder.takeFromDisk();
  assert.deepEqual([folder.captions.text("a"), folder.captions.edits.map(({ name }) => name), folder.conflict], ["theirs", ["b"], null]);
  folder.captions.undo();
  assert.deepEqual([folder.captions.text("a"), folder.captions.edits[0].before], ["mine", "theirs"]);
});

test("any other failure is told in the error's words", async () => {
  const { folder } = folderWith({ a: "mine" });
  await folder.save(serverWith(new ServerError("The server answered 500.", 500)));
  assert.deepEqual([folder.saveError, folder.conflict], ["The server answered 500.", null]);
});

test("a queued prompt is remembered while there are unsaved captions", () => {
  const { folder } = folderWith({ a: "mine" });
  assert.equal(folder.markQueued(), 1);
  assert.equal(folder.wasQueuedUnsaved, true);
  folder.captions.undo();
  folder.changed();
  assert.equal(folder.wasQueuedUnsaved, false);
  assert.equal(folder.markQueued(), 0);
});

test("a watcher that ended is not called", () => {
  const folder = new CaptionFolder("x");
  let calls = 0;
  folder.watch(() => (calls += 1))();
  folder.changed();
  assert.equal(calls, 0);
});

test("a name has one folder, and its edits are counted among the others'", () => {
  const cats = captionFolder("all cats");
  assert.equal(captionFolder("all cats"), cats);
  cats.captions.load(PICTURES);
  cats.captions.change({ a: "x", b: "y" });
  assert.deepEqual(unsavedElsewhere(captionFolder("all dogs")), [["all cats", 2]]);
  assert.deepEqual(unsavedElsewhere(cats), []);
});
