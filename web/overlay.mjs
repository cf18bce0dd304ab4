// A picture enlarged over the whole page. The arrow keys go through the others.
import { button, element, setText } from "./dom.mjs";

/**
 * Opens a picture out of rows of pictures: left and right move within a row, up and down to another row.
 * @param {() => {key: string, url: string, title: string, detail: string}[][]} getRows called at each move: a run adds pictures
 * @param {string} key of the picture to open
 * @returns {HTMLDialogElement}
 */
export function openOverlay(getRows, key) {
  let current = key;
  const picture = element("img", { alt: "" });
  const title = element("div", { className: "kiln-overlay-title" });
  const detail = element("div", { className: "kiln-overlay-detail" });
  const close = button("Close", "Close (Escape)", () => dialog.close());
  const previous = button("‹", "Before (left arrow)", () => move(0, -1), "kiln-arrow");
  const next = button("›", "After (right arrow)", () => move(0, 1), "kiln-arrow");
  const dialog = element("dialog", { className: "kiln-overlay", "aria-label": "Picture", tabIndex: -1 },
    element("div", { className: "kiln-overlay-stage" }, previous, picture, next),
    element("div", { className: "kiln-overlay-caption" }, title, detail, close),
  );

  /** The rows, and where in them the current picture is; row -1 where it is gone. */
  function locate() {
    const rows = getRows();
    const row = rows.findIndex((items) => items.some((item) => item.key === current));
    return { rows, row, column: row < 0 ? -1 : rows[row].findIndex((item) => item.key === current) };
  }

  function move(down, right) {
    const { rows, row, column } = locate();
    if (row < 0) return;
    const items = rows[Math.min(rows.length - 1, Math.max(0, row + down))];
    const wanted = right === -Infinity ? 0 : column + right;
    current = items[Math.min(items.length - 1, Math.max(0, wanted))].key;
    show();
  }

  function show() {
    const { rows, row, column } = locate();
    if (row < 0) return dialog.close();
    const item = rows[row][column];
    if (picture.src !== new URL(item.url, location.href).href) picture.src = item.url;
    picture.alt = item.title;
    setText(title, item.title);
    setText(detail, `${item.detail} · ${column + 1} of ${rows[row].length}`);
    previous.disabled = column === 0;
    next.disabled = column === rows[row].length - 1;
  }

  const keys = {
    ArrowLeft: () => move(0, -1),
    ArrowRight: () => move(0, 1),
    ArrowUp: () => move(-1, 0),
    ArrowDown: () => move(1, 0),
    Home: () => move(0, -Infinity),
    End: () => move(0, Infinity),
    Escape: () => dialog.close(),
  };
  dialog.onkeydown = (event) => {
    event.stopPropagation(); // the graph under the dialog has shortcuts of its own
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  };
  dialog.onclick = (event) => {
    if (!event.target.closest("img, button, .kiln-overlay-caption")) dialog.close();
  };
  dialog.onclose = () => dialog.remove();
  document.body.append(dialog);
  show();
  dialog.showModal();
  dialog.focus(); // else its first button has the focus, whose ring looks like a selection
  return dialog;
}
