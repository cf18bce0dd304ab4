// The card of a dataset picture, in the contact sheet and in the caption editor. Text from files is set as text, never as HTML.

import { element } from "./dom.mjs";

/**
 * Makes the card of a picture: its crop, its bucket, and marks for what is unusual.
 * @param {import("./server.mjs").Server} server
 * @param {import("./caption_folder.mjs").CaptionFolder} folder
 * @param {object} picture as the server scanned it
 * @param {number} side pixels of the thumbnail's longer side
 * @param {HTMLElement} body the element for its caption
 * @returns {{root: HTMLElement, update: () => void}} update: to be called after its caption changed
 */
export function pictureCard(server, folder, picture, side, body) {
  const meta = element("div", { className: "kiln-meta" });
  const root = element("div", { className: "kiln-card" }, [croppedPicture(server, folder, picture, side), body, meta]);
  root.dataset.name = picture.name;
  let wasUnsaved = null;
  const update = () => {
    const isUnsaved = folder.captions.isEdited(picture.name);
    if (isUnsaved === wasUnsaved) return;
    wasUnsaved = isUnsaved;
    meta.replaceChildren(...marksOf(picture, isUnsaved));
  };
  update();
  return { root, update };
}

/** The picture, dark where training crops it. */
function croppedPicture(server, folder, picture, side) {
  const query = { folder: folder.name, name: picture.name, side, v: picture.version };
  const image = element("img", { loading: "lazy", draggable: false, alt: "", src: server.url("/kiln/thumbnail", query) });
  const [left, top, width, height] = picture.crop.map((share) => `${share * 100}%`);
  const cut = element("div", { className: "kiln-cut" });
  Object.assign(cut.style, { left, top, width, height });
  const shown = element("div", { className: "kiln-picture" }, [image, cut]);
  const ratio = picture.width / picture.height;
  shown.style.aspectRatio = String(ratio);
  shown.style.width = `min(100%, calc(var(--kiln-side) * ${ratio}))`;
  const frame = element("div", { className: "kiln-frame" }, [shown]);
  const size = `${picture.width} x ${picture.height} pixels, trained at ${picture.bucket.join(" x ")}`;
  frame.title = `${picture.name}\n${size}; what is dark is cut off.`;
  return frame;
}

function marksOf(picture, isUnsaved) {
  const size = `${picture.width} x ${picture.height} pixels`;
  return [
    element("span", { textContent: picture.bucket.join(" × ") }),
    picture.repeats > 1 && element("span", { textContent: `${picture.repeats} times` }),
    isUnsaved && mark("unsaved", "This caption is not saved yet.", "kiln-unsaved"),
    picture.enlarged && mark("too small", `${size}: it is enlarged to fill its bucket.`),
    picture.same_as !== null && mark(`same as ${picture.same_as}`, "The two files have the same content."),
    picture.regularisation &&
      mark("regularisation", "Keeps what the model knows: from regularisation_folder, or as its folder's dataset.toml says."),
  ].filter(Boolean);
}

function mark(text, title, className = "") {
  return element("span", { className: `kiln-mark ${className}`, textContent: text, title });
}
