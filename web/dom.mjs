// Elements of the page. Text is set as text nodes only: names, captions, prompts and messages are never read as HTML.

/**
 * Makes an element.
 * @param {string} tag
 * @param {object} properties set as properties (className, onclick ...); names with a dash, and `role`, are set as attributes
 * @param {...(Node | string | (Node | string)[])} children
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat());
  return made;
}

/** Makes a button. `title` is its tooltip. */
export const button = (label, title, onclick, className = "") =>
  element("button", { type: "button", title, onclick, className: `kiln-button ${className}` }, label);

/** Adds a stylesheet to the page. Resolves once it is applied; also when it cannot be loaded, as the views work without it. */
export function loadStylesheet(url) {
  return new Promise((resolve) => {
    const onerror = () => {
      console.error(`LoRA Kiln: the stylesheet ${url.href} cannot be loaded.`);
      resolve();
    };
    document.head.append(element("link", { rel: "stylesheet", href: url.href, onload: () => resolve(), onerror }));
  });
}

/** Sets an element's text only where it differs: setting it ends a selection, and makes a screen reader read it again. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Gives a function that requests a call of `paint` in the next frame, once however often it is called; `cancel()` drops it. */
export function onceAFrame(paint) {
  let asked = 0;
  const request = () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      paint();
    });
  };
  request.cancel = () => cancelAnimationFrame(asked);
  return request;
}
