// Pieces that the node's view and the caption editor share. Text from files is only ever set as text.

import { plural } from "./captions.mjs";

const CHUNK = 60; // cards made at a time
const STYLE = `
.kiln-dataset, .kiln-editor { font: 12px/1.4 Inter, system-ui, sans-serif; color: var(--input-text, #ddd); }
.kiln-dataset { display: flex; flex-direction: column; gap: 6px; width: 100%; height: 100%; box-sizing: border-box;
  border-radius: 6px; pointer-events: auto; }
.kiln-dataset [hidden], .kiln-editor [hidden] { display: none; }
.kiln-drop { outline: 2px dashed #f2a65a; outline-offset: -2px; }
.kiln-bar { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; }
.kiln-button { font: inherit; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); cursor: pointer;
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 5px; padding: 3px 9px; white-space: nowrap; }
.kiln-button:hover:not(:disabled), .kiln-button:focus-visible { border-color: #f2a65a; outline: none; }
.kiln-button:disabled { opacity: 0.45; cursor: default; }
.kiln-main { background: #f2a65a; border-color: #f2a65a; color: #1b1b1b; font-weight: 600; }
.kiln-dataset input:not([type]), .kiln-editor input[type=text], .kiln-editor select, .kiln-editor textarea {
  font: inherit; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 5px; padding: 4px 7px; min-width: 0; box-sizing: border-box; }
.kiln-dataset input:focus, .kiln-editor input:focus, .kiln-editor textarea:focus, .kiln-editor select:focus {
  outline: none; border-color: #f2a65a; }
.kiln-upload { display: flex; flex-direction: column; gap: 5px; padding: 7px; border: 1px solid #f2a65a; border-radius: 6px; }
.kiln-upload input { flex: 1; }
.kiln-upload progress { width: 100%; accent-color: #f2a65a; }
.kiln-status, .kiln-meta, .kiln-faint { color: var(--descrip-text, #999); }
.kiln-notice { color: var(--error-text, #ff6b6b); white-space: pre-line; overflow-wrap: anywhere; max-height: 8em; overflow: auto; }
.kiln-hint { grid-column: 1 / -1; text-align: center; color: var(--descrip-text, #999); padding: 28px 12px; }
.kiln-sheet { flex: 1 1 0; min-height: 110px; overflow: auto; display: grid; align-content: start; gap: 8px;
  grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); padding: 6px; border-radius: 6px;
  background: var(--comfy-input-bg, #222); outline: none; scrollbar-width: thin; }
.kiln-card { display: flex; flex-direction: column; gap: 3px; min-width: 0; content-visibility: auto;
  contain-intrinsic-size: auto 150px; }
.kiln-sheet .kiln-card { cursor: pointer; border-radius: 5px; }
.kiln-sheet .kiln-card:hover .kiln-frame, .kiln-sheet .kiln-card:focus-visible .kiln-frame { outline: 1px solid #f2a65a; }
.kiln-card:focus-visible { outline: none; }
.kiln-sheet { --kiln-side: 104px; }
.kiln-cards { --kiln-side: 200px; }
.kiln-frame { height: var(--kiln-side); display: flex; align-items: center; justify-content: center; border-radius: 4px;
  background: color-mix(in srgb, var(--fg-color, #fff) 7%, transparent); overflow: hidden; }
.kiln-picture { position: relative; overflow: hidden; }
.kiln-picture img { display: block; width: 100%; height: 100%; object-fit: fill; }
.kiln-cut { position: absolute; box-shadow: 0 0 0 9999px rgb(0 0 0 / 0.55); outline: 1px solid #f2a65a; outline-offset: -1px; }
.kiln-text { display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical; overflow: hidden; overflow-wrap: anywhere; }
.kiln-meta { font-size: 11px; display: flex; flex-wrap: wrap; gap: 2px 5px; align-items: center; }
.kiln-mark { border-radius: 3px; padding: 0 4px; background: #f2a65a; color: #1b1b1b; max-width: 100%; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
.kiln-mark.kiln-unsaved { background: #6aa5ff; }
.kiln-problems { color: var(--descrip-text, #999); }
.kiln-problems summary { cursor: pointer; color: var(--error-text, #ff6b6b); }
.kiln-problems ul { margin: 4px 0 0; padding-left: 18px; max-height: 110px; overflow: auto; overflow-wrap: anywhere; }
.kiln-save { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; }
.kiln-save .kiln-dot { color: #6aa5ff; font-weight: 600; }
.kiln-save .kiln-notice { flex-basis: 100%; }
.kiln-editor { width: min(1500px, 96vw); height: 94vh; max-width: none; max-height: none; padding: 0; overflow: hidden;
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 10px; background: var(--comfy-menu-bg, #353535); }
.kiln-editor::backdrop { background: rgb(0 0 0 / 0.6); }
.kiln-editor[open] { display: flex; flex-direction: column; }
.kiln-head { display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: center; padding: 10px 14px;
  border-bottom: 1px solid var(--border-color, #4e4e4e); }
.kiln-head h2 { font-size: 15px; font-weight: 600; margin: 0; overflow: hidden; text-overflow: ellipsis; }
.kiln-head .kiln-bar input[type=text] { width: 150px; }
.kiln-space { flex: 1; }
.kiln-body { flex: 1; min-height: 0; display: flex; }
.kiln-cards { flex: 1; overflow: auto; display: grid; align-content: start; gap: 16px 14px; padding: 14px; outline: none;
  grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); }
.kiln-cards .kiln-card { contain-intrinsic-size: auto 330px; }
.kiln-cards textarea { width: 100%; resize: vertical; min-height: 74px; line-height: 1.4; }
.kiln-name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.kiln-tags { width: 240px; flex: none; overflow: auto; padding: 12px; border-left: 1px solid var(--border-color, #4e4e4e); }
.kiln-tags h3 { font-size: 13px; margin: 0 0 8px; font-weight: 600; }
.kiln-tag { display: flex; gap: 4px; align-items: center; border-radius: 4px; }
.kiln-tag button { font: inherit; color: inherit; background: none; border: 0; padding: 3px 5px; cursor: pointer; border-radius: 4px; }
.kiln-tag button:hover, .kiln-tag button:focus-visible { background: var(--comfy-input-bg, #222); outline: none; }
.kiln-tag button:first-child { flex: 1; min-width: 0; text-align: left; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.kiln-tag.kiln-on button:hover, .kiln-tag.kiln-on button:focus-visible { background: rgb(255 255 255 / 0.35); }
.kiln-tag.kiln-on { background: #f2a65a; color: #1b1b1b; }
@media (max-width: 760px) {
  .kiln-body { flex-direction: column-reverse; }
  .kiln-tags { width: auto; max-height: 22vh; border-left: 0; border-bottom: 1px solid var(--border-color, #4e4e4e); }
}
`;

/** Puts the style on the page, once. */
export function useStyle() {
  if (document.getElementById("kiln-dataset-style")) return;
  document.head.append(element("style", { id: "kiln-dataset-style", textContent: STYLE }));
}

/** An element with properties and children. */
export function element(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function button(text, title, onClick) {
  const made = element("button", { type: "button", className: "kiln-button", textContent: text, title });
  made.addEventListener("click", onClick);
  return made;
}

/**
 * A picture with its crop, bucket and marks: {root, update}. body: the element for its caption; side: of the thumbnail,
 * in pixels; update after its caption changed.
 */
export function card(api, folder, picture, side, body) {
  const [left, top, width, height] = picture.crop.map((share) => `${share * 100}%`);
  const query = new URLSearchParams({ folder: folder.name, name: picture.name, side, v: picture.version });
  const image = element("img", { loading: "lazy", draggable: false, alt: "", src: api.apiURL(`/kiln/thumbnail?${query}`) });
  const cut = element("div", { className: "kiln-cut" });
  Object.assign(cut.style, { left, top, width, height });
  const shown = element("div", { className: "kiln-picture" }, [image, cut]);
  const ratio = picture.width / picture.height;
  shown.style.aspectRatio = String(ratio);
  shown.style.width = `min(100%, calc(var(--kiln-side) * ${ratio}))`;
  const frame = element("div", { className: "kiln-frame" }, [shown]);
  frame.title = `${picture.name}\n${picture.width} x ${picture.height} pixels, trained at ${picture.bucket.join(" x ")}; what is dark is cut off.`;
  const meta = element("div", { className: "kiln-meta" });
  const root = element("div", { className: "kiln-card" }, [frame, body, meta]);
  root.dataset.name = picture.name;
  let wasUnsaved = null;
  const update = () => {
    const isUnsaved = folder.captions.isEdited(picture.name);
    if (isUnsaved === wasUnsaved) return;
    wasUnsaved = isUnsaved;
    meta.replaceChildren(
      element("span", { textContent: picture.bucket.join(" × ") }),
      ...(picture.repeats > 1 ? [element("span", { textContent: `${picture.repeats} times` })] : []),
      ...(isUnsaved ? [mark("unsaved", "This caption is not saved yet.", "kiln-unsaved")] : []),
      ...(picture.enlarged ? [mark("too small", `${picture.width} x ${picture.height} pixels: it is enlarged to fill its bucket.`)] : []),
      ...(picture.same_as !== null ? [mark(`same as ${picture.same_as}`, "The two files have the same content.")] : []),
      ...(picture.regularisation ? [mark("regularisation", "Its folder's dataset.toml says so.")] : []),
    );
  };
  update();
  return { root, update };
}

/** A scrolling element's children, made while it is scrolled: {show(items, make), reveal(test), stop()}. */
export function lazyGrid(scroller) {
  const end = element("div");
  let items = [];
  let make = null;
  let made = 0;
  const more = () => {
    const some = items.slice(made, made + CHUNK);
    made += some.length;
    end.before(...some.map(make));
    observer.unobserve(end);
    if (made < items.length) observer.observe(end); // anew: the end may be in sight still
  };
  const observer = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && more(), {
    root: scroller,
    rootMargin: "600px",
  });
  return {
    show(list, makeOne) {
      [items, make, made] = [list, makeOne, 0];
      scroller.replaceChildren(end);
      scroller.scrollTop = 0;
      more();
    },
    /** Makes children until there is one for the item. */
    reveal(test) {
      while (made < items.length && !items.slice(0, made).some(test)) more();
    },
    stop: () => observer.disconnect(),
  };
}

/** Sentences that can be opened: {root, show(sentences)}. */
export function listOfProblems() {
  const head = element("summary");
  const list = element("ul");
  const root = element("details", { className: "kiln-problems", hidden: true }, [head, list]);
  return {
    root,
    show(problems) {
      root.hidden = !problems.length;
      head.textContent = `${plural(problems.length, "file")} left out`;
      list.replaceChildren(...problems.map((text) => element("li", { textContent: text })));
    },
  };
}

/**
 * How many edits are unsaved, Save, and what went wrong: {root, paint}. getFolder: the Folder or null; onConflict is
 * called when a decision is needed.
 */
export function saveBar(getFolder, api, onConflict = () => {}) {
  const count = element("span", { className: "kiln-dot" });
  const notice = element("div", { className: "kiln-notice" });
  const run = async (overwrite) => {
    const folder = getFolder();
    save.disabled = true;
    await folder.save(api, overwrite);
    if (folder.conflict) onConflict();
  };
  const save = button("Save captions", "Writes the captions beside their pictures", () => run(false));
  save.classList.add("kiln-main");
  const overwrite = button("Overwrite with mine", "Writes your captions over those on disk", () => run(true));
  const theirs = button("Take those on disk", "Drops your edits of these captions; undo brings them back", () => getFolder().takeTheirs());
  const root = element("div", { className: "kiln-save" }, [count, save, notice, overwrite, theirs]);
  return {
    root,
    paint() {
      const folder = getFolder();
      const unsaved = folder?.captions.edits.length ?? 0;
      const changed = Object.keys(folder?.conflict ?? {});
      notice.textContent = changed.length
        ? `${plural(changed.length, "caption")} changed on disk since you read them, and nothing was saved: ${changed.join(", ")}`
        : (folder?.message ?? "");
      if (unsaved && folder.locked && !notice.textContent) notice.textContent = folder.locked;
      count.textContent = unsaved ? `● ${unsaved} unsaved` : "";
      save.hidden = !unsaved || changed.length > 0;
      save.disabled = Boolean(folder?.locked);
      notice.hidden = !notice.textContent;
      overwrite.hidden = theirs.hidden = !changed.length;
      root.hidden = !unsaved && notice.hidden;
    },
  };
}

function mark(text, title, kind = "") {
  return element("span", { className: `kiln-mark ${kind}`, textContent: text, title });
}
