// What the views use of a ComfyUI node (a LiteGraph node): its widgets, inputs and callbacks.

const ENABLED = 0; // the `mode` of a node that is neither muted nor bypassed
const LARGEST_SEED = Number.MAX_SAFE_INTEGER;

export const isEnabled = (node) => node.mode === ENABLED;

/** The widget of a node by its name; undefined where it has none. */
export const widgetNamed = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** Whether an input, or a widget turned into an input, gets its value over a wire. */
export function isLinked(node, name) {
  return node.inputs?.find((input) => input.name === name || input.widget?.name === name)?.link != null;
}

/**
 * Adds a view to a node as its last widget, which is saved neither in the prompt nor in the workflow.
 * @param {string} name the widget's name; its type is the same in capitals
 * @param {HTMLElement} root the view's root element
 * @param {number} minHeight pixels; Vue nodes follow the CSS min-height of `root` instead
 * @param {object} options further options of the widget
 */
export function addViewWidget(node, name, root, minHeight, options = {}) {
  const widget = node.addDOMWidget(name, name.toUpperCase(), root, {
    serialize: false, // keeps it out of the prompt, and so out of the cache key
    hideOnZoom: false,
    getMinHeight: () => minHeight,
    ...options,
  });
  widget.serialize = false; // keeps it out of the saved workflow
  keepWidth(widget);
  return widget;
}

/** The host's side panel sets the width of a widget that it lists and never resets it. This keeps the node's width. */
function keepWidth(widget) {
  Object.defineProperty(widget, "width", { get: () => undefined, set() {}, configurable: true });
}

/** Calls `then` with the same arguments after each call of `object[method]`, which need not exist. */
export function after(object, method, then) {
  const before = object[method];
  object[method] = function () {
    const result = before?.apply(this, arguments);
    then(...arguments);
    return result;
  };
}

/** Keeps the host from showing a node's output images below its own view, as long as `isHidden()` is true. */
export function hideOwnPreview(node, isHidden) {
  Object.defineProperty(node, "hideOutputImages", { get: isHidden, configurable: true }); // Vue nodes
  const draw = node.onDrawBackground;
  node.onDrawBackground = function () {
    if (!isHidden()) draw?.apply(this, arguments); // classic nodes
  };
}

/**
 * Lets number widgets take any typed number. The host would silently move it to the nearest bound; sent as typed, the
 * server refuses it and names the bounds.
 */
export function acceptNumbersAsTyped(node) {
  for (const { type, options } of node.widgets ?? []) {
    if (type !== "number" || options.max === LARGEST_SEED) continue; // random seeds are drawn between the bounds
    options.max = LARGEST_SEED;
    options.min = Math.min(options.min, 0); // the arrows stop at 0, which mostly means "off"
  }
}

/**
 * Passes the wheel and the middle mouse button over a view on to the canvas, which zooms and pans with them. The wheel
 * stays with an element marked data-capture-wheel while that has the focus: it scrolls.
 * @param {HTMLElement} root
 * @param {() => object} getCanvas gives the app's LGraphCanvas
 */
export function passOnToCanvas(root, getCanvas) {
  root.addEventListener("wheel", (event) => {
    if (event.target.closest("[data-capture-wheel]")?.contains(document.activeElement)) return;
    event.preventDefault();
    getCanvas().processMouseWheel(event);
  });
  const methods = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" };
  for (const [type, method] of Object.entries(methods)) {
    root.addEventListener(type, (event) => {
      const isMiddle = type === "pointermove" ? event.buttons & 4 : event.button === 1;
      if (isMiddle) getCanvas()[method](event);
    });
  }
}
