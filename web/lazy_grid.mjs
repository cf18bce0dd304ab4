// A scrolling list that makes its elements as they come into sight, for folders with thousands of pictures.

import { element } from "./dom.mjs";

const CHUNK = 60; // elements made at a time
const AHEAD = "600px"; // how far below the visible part they are made

/**
 * Makes the elements of a list inside a scrolling element.
 * @param {HTMLElement} scroller
 * @returns {{show, reveal, stop}} show(items, make): another list, with the function that makes an item's element;
 *   reveal(test): makes elements up to the first item that passes; stop(): ends it
 */
export function lazyGrid(scroller) {
  const end = element("div"); // after the last element that is made: the next are made when it comes into sight
  let items = [];
  let make = null;
  let made = 0;
  const makeMore = () => {
    const some = items.slice(made, made + CHUNK);
    made += some.length;
    end.before(...some.map(make));
    observer.unobserve(end);
    if (made < items.length) observer.observe(end); // observed anew, it reports also an end that stayed in sight
  };
  const observer = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && makeMore(), {
    root: scroller,
    rootMargin: AHEAD,
  });
  return {
    show(list, makeOne) {
      [items, make, made] = [list, makeOne, 0];
      scroller.replaceChildren(end);
      scroller.scrollTop = 0;
      makeMore();
    },
    reveal(test) {
      while (made < items.length && !items.slice(0, made).some(test)) makeMore();
    },
    stop: () => observer.disconnect(),
  };
}
