// Elements of the page. Text goes in as text nodes only: names, prompts and messages of a run are no HTML.

/** An element with properties, attributes (a dash in the name), listeners (onclick ...) and children, or lists of them. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat());
  return made;
}

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

/** Sets a text only where it changed: what is selected and read aloud stays so. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Calls a function once a frame at most, however often it is asked for. */
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
