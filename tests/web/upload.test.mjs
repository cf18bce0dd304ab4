// Which dropped files are uploaded, and the form that carries them.

import assert from "node:assert/strict";
import { test } from "node:test";

import { planUpload, uploadForm } from "../../web/upload.mjs";

const plan = (...paths) => planUpload(paths.map((path) => ({ path, file: path })));
const paths = (planned) => planned.files.map((each) => each.path);

test("a folder gives its name, and the files keep their paths inside it", () => {
  const planned = plan("cats/a.png", "cats/a.txt", "cats/10_x/b.JPG");
  assert.equal(planned.name, "cats");
  assert.deepEqual(paths(planned), ["a.png", "a.txt", "10_x/b.JPG"]);
  assert.deepEqual([planned.pictures, planned.captions, planned.left], [2, 1, 0]);
});

test("pictures without a folder, or of several, get a name to be changed", () => {
  assert.equal(plan("a.png", "b.png").name, "my_pictures");
  const planned = plan("cats/a.png", "dogs/a.png", "b.png");
  assert.equal(planned.name, "my_pictures");
  assert.deepEqual(paths(planned), ["cats/a.png", "dogs/a.png", "b.png"]);
});

test("other files are left out and counted, hidden files are not counted", () => {
  const planned = plan("cats/a.png", "cats/.DS_Store", "cats/notes.pdf", "cats/.git/x.png", "cats/b.caption");
  assert.deepEqual(paths(planned), ["a.png", "b.caption"]);
  assert.equal(planned.left, 1);
});

test("thumbnails and copies that systems make are not counted", () => {
  const planned = plan("cats/a.png", "cats/@eaDir/a.png/SYNO.jpg", "__MACOSX/cats/a.png", "cats/$RECYCLE.BIN/b.png");
  assert.deepEqual(paths(planned), ["a.png"]);
  assert.deepEqual([planned.name, planned.left], ["cats", 0]);
});

test("without files, or without pictures, the counts are zero", () => {
  assert.deepEqual([plan().pictures, plan("a.txt").pictures, plan("a.txt").captions], [0, 0, 1]);
});

test("the form lists the paths first, then the files in the same order", async () => {
  const files = [{ path: "a.png", file: new Blob(["one"]) }, { path: "10_x/<b>.txt", file: new Blob(["two"]) }];
  const parts = [...uploadForm(files)];
  assert.deepEqual(parts.map(([name]) => name), ["names", "file", "file"]);
  assert.deepEqual(JSON.parse(parts[0][1]), ["a.png", "10_x/<b>.txt"]);
  assert.deepEqual(await Promise.all(parts.slice(1).map(([, file]) => file.text())), ["one", "two"]);
});
