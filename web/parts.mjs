// Pieces that the node's view and the caption editor share. Text from files is only ever set as text.

import { plural } from "./captions.mjs";
import { button, element } from "./dom.mjs";

const CHUNK = 60; // cards made at a time
/**
 * A picture with its crop, bucket and marks: {root, update}. body: the element for its caption; side: of the thumbnail,
 * in pixels; update after its caption changed.
 */
export function card(server, folder, picture, side, body) {
  const [left, top, width, height] = picture.crop.map((share) => `${share * 100}%`);
  const query = { folder: folder.name, name: picture.name, side, v: picture.version };
  const image = element("img", { loading: "lazy", draggable: false, alt: "", src: server.url("/kiln/thumbnail", query) });
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
      ...(picture.regularisation ? [mark("regularisation", "Keeps what the model knows: from regularisation_folder, or as its folder's dataset.toml says.")] : []),
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

const LEFT_BEHIND = "The run was queued without these edits: it reads the captions on disk. Save them and press Run again.";

/**
 * How many edits are unsaved, Save, and what went wrong: {root, paint}. getFolder: the Folder or null; onConflict is
 * called when a decision is needed.
 */
export function saveBar(getFolder, server, onConflict = () => {}) {
  const count = element("span", { className: "kiln-dot" });
  const notice = element("div", { className: "kiln-notice" });
  const run = async (overwrite) => {
    const folder = getFolder();
    save.disabled = true;
    await folder.save(server, overwrite);
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
      if (unsaved && !notice.textContent) notice.textContent = folder.locked || (folder.isLeftBehind ? LEFT_BEHIND : "");
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
