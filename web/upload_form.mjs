// The form that asks for the name of a new dataset folder, and shows the progress of the upload.

import { button, element } from "./dom.mjs";
import { plural } from "./format.mjs";
import { planUpload, uploadForm } from "./upload.mjs";

/** Hidden until `open` is called with files. */
export class UploadForm {
  #server;
  #onEnd;

  /**
   * @param {import("./server.mjs").Server} server
   * @param {(error: Error | null, answer?: {folder: string, refused: string[]}) => void} onEnd called after an upload with the
   *   folder's final name and a sentence for each file that the server refused
   */
  constructor(server, onEnd) {
    this.#server = server;
    this.#onEnd = onEnd;
    this.root = element("form", { className: "kiln-upload", hidden: true });
  }

  /**
   * Asks for the folder's name; the upload begins when the form is sent.
   * @param {{path: string, file: File}[]} files
   * @returns {boolean} false: there is no picture among the files, and the form does not open
   */
  open(files) {
    const plan = planUpload(files);
    if (!plan.pictures) return false;
    const name = element("input", { value: plan.name, maxLength: 100, required: true, ariaLabel: "name of the new folder" });
    const counts = [
      plural(plan.pictures, "picture"),
      plan.captions && plural(plan.captions, "caption"),
      plan.left && `${plural(plan.left, "other file")} left out`,
    ];
    this.root.replaceChildren(
      element("div", { textContent: `${counts.filter(Boolean).join(", ")} into a new folder in ComfyUI's input folder:` }),
      element("div", { className: "kiln-bar" }, [
        name,
        element("button", { type: "submit", textContent: "Add", className: "kiln-button kiln-main" }),
        button("Cancel", "", () => this.#close()),
      ]),
    );
    this.root.hidden = false;
    this.root.onsubmit = (event) => {
      event.preventDefault();
      this.#send(name.value, plan.files);
    };
    name.select();
    return true;
  }

  async #send(name, files) {
    const bar = element("progress", { max: 1, value: 0 });
    const text = element("span", { textContent: "Sending …" });
    this.root.replaceChildren(text, bar);
    const onProgress = (share) => {
      bar.value = share;
      if (share >= 1) text.textContent = "Looking at the files …";
    };
    let answer;
    try {
      answer = await this.#server.upload("/kiln/dataset/upload", { name }, uploadForm(files), onProgress);
    } catch (error) {
      this.#close();
      return this.#onEnd(error);
    }
    this.#close();
    this.#onEnd(null, answer);
  }

  #close() {
    this.root.hidden = true;
    this.root.replaceChildren();
  }
}
