// What a Load Dataset node loads: its folder and its regularisation folder, scanned anew with each change.

import assert from "node:assert/strict";
import { test } from "node:test";

import { captionFolder } from "../../web/caption_folder.mjs";
import { Dataset } from "../../web/dataset.mjs";

let last = 0;
const freshName = () => `folder ${++last}`; // the page keeps folders by name

/** A dataset whose server answers each scan with `answer(query)`, and a record of what it reports. */
function datasetWith(answer) {
  const queries = [];
  const events = [];
  const server = { get: async (path, query) => (queries.push(query), answer(query)) };
  const on = {
    change: () => events.push("change"),
    edit: () => events.push("edit"),
    progress: (done, total) => events.push(`${done}/${total}`),
  };
  return { dataset: new Dataset(server, on), queries, events };
}

const scanOf = (names, problems = [], notes = []) => ({
  done: 1, total: 1, locked: "", problems, notes, pictures: names.map((name) => ({ name, caption: "" })),
});
const namesOf = (pictures) => pictures.map(({ name }) => name);

test("a folder is scanned with the node's settings", async () => {
  const folder = freshName();
  const { dataset, queries } = datasetWith(() => scanOf(["a", "b"], ["c.png cannot be read"]));
  await dataset.refresh({ folder, resolution: 512 }, "none");
  assert.deepEqual(queries, [{ folder, resolution: 512 }]);
  assert.deepEqual([dataset.folder, namesOf(dataset.pictures)], [captionFolder(folder), ["a", "b"]]);
  assert.deepEqual([dataset.regularisationPictures, dataset.problems, dataset.error], [[], ["c.png cannot be read"], ""]);
});

test("without a folder there is nothing, and no request", async () => {
  for (const folder of ["none", "", undefined]) {
    const { dataset, queries, events } = datasetWith(() => assert.fail("asked"));
    await dataset.refresh({ folder });
    assert.deepEqual([queries, events, dataset.folder, dataset.pictures], [[], ["change"], null, []]);
  }
});

test("a regularisation folder is scanned with the same settings", async () => {
  const [folder, regularisation] = [freshName(), freshName()];
  const { dataset, queries } = datasetWith(({ folder: each }) => scanOf([`of ${each}`], [`problem of ${each}`], [`note on ${each}`]));
  await dataset.refresh({ folder, resolution: 256 }, regularisation);
  assert.deepEqual(queries[1], { folder: regularisation, resolution: 256 });
  assert.deepEqual(namesOf(dataset.regularisationPictures), [`of ${regularisation}`]);
  assert.deepEqual(dataset.problems, [`problem of ${folder}`, `problem of ${regularisation}`]);
  assert.deepEqual(dataset.notes, [`note on ${folder}`, `note on ${regularisation}`]);
  await dataset.refresh({ folder }, folder);
  assert.equal(dataset.regularisation, null); // the same folder: its pictures are shown already
});

test("progress is reported while pictures are left, and the view is painted once the scan is there", async () => {
  const answers = [{ done: 1, total: 9 }, { done: 5, total: 9 }, scanOf(["a"])];
  const { dataset, events } = datasetWith(() => answers.shift());
  await dataset.refresh({ folder: freshName() });
  assert.deepEqual(events.filter((event) => event !== "edit"), ["change", "1/9", "5/9", "change"]);
});

test("the newest refresh wins, whichever answer comes last", async () => {
  const [slow, quick] = [freshName(), freshName()];
  let release;
  const waiting = new Promise((resolve) => (release = resolve));
  const { dataset } = datasetWith(async (query) => {
    if (query.folder === slow) await waiting;
    return scanOf([`of ${query.folder}`]);
  });
  const first = dataset.refresh({ folder: slow });
  await dataset.refresh({ folder: quick });
  release();
  await first;
  assert.deepEqual([dataset.folder.name, namesOf(dataset.pictures)], [quick, [`of ${quick}`]]);
});

test("an error is told, and forgotten with the next scan that succeeds", async () => {
  const folder = freshName();
  const answers = [new Error("No such folder."), scanOf(["a"])];
  const { dataset } = datasetWith(() => {
    const answer = answers.shift();
    if (answer instanceof Error) throw answer;
    return answer;
  });
  await dataset.refresh({ folder });
  assert.deepEqual([dataset.error, dataset.scan], ["No such folder.", null]);
  await dataset.refresh({ folder });
  assert.deepEqual([dataset.error, namesOf(dataset.pictures)], ["", ["a"]]);
});

test("edits of both folders are reported until another is chosen or the node is removed", async () => {
  const [folder, regularisation] = [freshName(), freshName()];
  const { dataset, events } = datasetWith(() => scanOf(["a"]));
  await dataset.refresh({ folder }, regularisation);
  events.length = 0;
  captionFolder(folder).changed();
  captionFolder(regularisation).changed();
  assert.deepEqual(events, ["edit", "edit"]);
  dataset.close();
  captionFolder(folder).changed();
  captionFolder(regularisation).changed();
  assert.deepEqual([events.length, dataset.folder], [2, null]);
});

test("a node removed during a scan reports nothing more", async () => {
  const { dataset, events } = datasetWith(() => ({ done: 1, total: 2 }));
  const scanned = dataset.refresh({ folder: freshName() });
  dataset.close();
  await scanned;
  assert.deepEqual(events, ["change"]);
});

test("a queued prompt names the folders with unsaved captions", async () => {
  const [folder, regularisation] = [freshName(), freshName()];
  const { dataset } = datasetWith(() => scanOf(["a", "b"]));
  assert.deepEqual(dataset.markQueued(), []);
  await dataset.refresh({ folder }, regularisation);
  assert.deepEqual(dataset.markQueued(), []);
  captionFolder(regularisation).captions.change({ a: "x", b: "y" });
  assert.deepEqual(dataset.markQueued(), [[regularisation, 2]]);
});
