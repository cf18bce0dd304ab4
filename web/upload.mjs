// Files that a person drops or chooses, on their way to a new dataset folder.

const PICTURE = /\.(png|jpe?g|webp|bmp|tiff?|gif|avif)$/i;
const CAPTION = /\.(txt|caption)$/i;
const DEFAULT_NAME = "my_pictures";

export const ACCEPT = ".png,.jpg,.jpeg,.webp,.bmp,.tif,.tiff,.gif,.avif,.txt,.caption";

/**
 * What of some files becomes a dataset: {name, files, pictures, captions, left}.
 * files: [{path, file}], paths with /. A folder that holds them all gives the name. Hidden files are not spoken of.
 */
export function planUpload(files) {
  const seen = files.filter(({ path }) => !path.split("/").some((part) => part.startsWith(".")));
  const tops = new Set(seen.map(({ path }) => (path.includes("/") ? path.split("/")[0] : "")));
  const top = tops.size === 1 ? [...tops][0] : "";
  const inside = seen.map(({ path, file }) => ({ path: top ? path.slice(top.length + 1) : path, file }));
  const wanted = inside.filter(({ path }) => PICTURE.test(path) || CAPTION.test(path));
  const pictures = wanted.filter(({ path }) => PICTURE.test(path)).length;
  return {
    name: top || DEFAULT_NAME,
    files: wanted,
    pictures,
    captions: wanted.length - pictures,
    left: inside.length - wanted.length,
  };
}

/** Whether a drag brings files from outside the page. */
export function bringsFiles(event) {
  return [...(event.dataTransfer?.types ?? [])].includes("Files");
}

/** The files of a drop, those in dropped folders too: [{path, file}]. Call it while the event is handled. */
export function droppedFiles(dataTransfer) {
  const items = [...dataTransfer.items].filter((item) => item.kind === "file");
  const found = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile()); // gone after the event
  return Promise.all(found.filter(Boolean).map((each) => (each instanceof File ? [{ path: each.name, file: each }] : filesOf(each))))
    .then((lists) => lists.flat());
}

/** The files of a file input: [{path, file}]. */
export function chosenFiles(input) {
  return [...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
}

/** The form that the server takes as a new folder: a JSON list of the paths, then the files in that order. */
export function uploadForm(files) {
  const form = new FormData();
  form.append("names", JSON.stringify(files.map(({ path }) => path)));
  for (const { file } of files) form.append("file", file, "file");
  return form;
}

async function filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ path: entry.fullPath.replace(/^\//, ""), file }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (!some.length) break;
    for (const each of some) found.push(...(await filesOf(each)));
  }
  return found;
}
