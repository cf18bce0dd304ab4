// Files that a person drops or chooses, read and prepared for the upload into a new dataset folder.

/** As the server's ENDINGS and SIDECARS. */
const PICTURES = [
  ...[".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jpe", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo", ".webp", ".bmp", ".dib"],
  ...[".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".hif", ".jxl"],
];
const CAPTIONS = [".txt", ".caption"];
const NOT_A_PERSONS = /^(\..*|@eadir|@tmp|@recycle|@recently-snapshot|#recycle|#snapshot|__macosx|\$recycle\.bin|system volume information|lost\+found)$/i;
const DEFAULT_NAME = "my_pictures";

/** For the file chooser. */
export const ACCEPT = [...PICTURES, ...CAPTIONS].join(",");

/**
 * Chooses the files that are uploaded. Hidden files, and folders that systems and network drives make, are ignored.
 * @param {{path: string, file: File}[]} files their paths are separated by "/"
 * @returns {object} name: of the folder that holds all the files, else a default; files: the pictures and captions, with paths
 *   inside that folder; pictures, captions, left: how many there are, and how many other files are left out
 */
export function planUpload(files) {
  const seen = files.filter(({ path }) => !path.split("/").some((part) => NOT_A_PERSONS.test(part)));
  const tops = new Set(seen.map(({ path }) => (path.includes("/") ? path.split("/")[0] : "")));
  const top = tops.size === 1 ? [...tops][0] : "";
  const inside = seen.map(({ path, file }) => ({ path: top ? path.slice(top.length + 1) : path, file }));
  const wanted = inside.filter(({ path }) => endsIn(PICTURES, path) || endsIn(CAPTIONS, path));
  const pictures = wanted.filter(({ path }) => endsIn(PICTURES, path)).length;
  return {
    name: top || DEFAULT_NAME,
    files: wanted,
    pictures,
    captions: wanted.length - pictures,
    left: inside.length - wanted.length,
  };
}

/** Whether an event drags files from outside the page. */
export function bringsFiles(event) {
  return [...(event.dataTransfer?.types ?? [])].includes("Files");
}

/** The files of a drop, with those inside dropped folders: resolves to [{path, file}]. Call it while the event is handled. */
export function droppedFiles(dataTransfer) {
  const items = [...dataTransfer.items].filter((item) => item.kind === "file");
  const found = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile()); // the items are gone after the event
  return Promise.all(found.filter(Boolean).map((each) => (each instanceof File ? [{ path: each.name, file: each }] : filesOf(each))))
    .then((lists) => lists.flat());
}

/** The files of a file input: [{path, file}]. */
export function chosenFiles(input) {
  return [...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
}

/** The form that the server takes: a JSON list of the paths, then the files in the same order. */
export function uploadForm(files) {
  const form = new FormData();
  form.append("names", JSON.stringify(files.map(({ path }) => path)));
  for (const { file } of files) form.append("file", file, "file");
  return form;
}

function endsIn(endings, path) {
  return endings.some((ending) => path.toLowerCase().endsWith(ending));
}

/** The files of a dropped file or folder. */
async function filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ path: entry.fullPath.replace(/^\//, ""), file }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    // A call gives about a hundred entries; after the last, none.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    for (const each of some) found.push(...(await filesOf(each)));
  }
  return found;
}
