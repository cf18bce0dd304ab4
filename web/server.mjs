// Requests to the server's API. Every request of the pack's views goes through here, and every failure is a ServerError.

/** A request that failed. The message is for people to read: the server's own words where it sent any. */
export class ServerError extends Error {
  name = "ServerError";

  /**
   * @param {string} message
   * @param {number} status HTTP status; 0 where no answer came
   * @param {object} body the answer's JSON object; empty where it had none
   */
  constructor(message, status = 0, body = {}) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

/** The server's API. */
export class Server {
  #api;

  /** @param api ComfyUI's `api` object; `fetchApi` and `apiURL` of it are used. */
  constructor(api) {
    this.#api = api;
  }

  /** The URL of an API path, for images. */
  url(path, query) {
    return this.#api.apiURL(withQuery(path, query));
  }

  /** Resolves to the JSON of the answer to a GET request. */
  get(path, query) {
    return this.#fetch(withQuery(path, query));
  }

  /** Sends `body` as JSON in a POST request. Resolves to the JSON of the answer. */
  post(path, body) {
    const headers = { "Content-Type": "application/json" };
    return this.#fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  }

  /**
   * Sends a form with files in a POST request. Resolves to the JSON of the answer.
   * @param {FormData} form
   * @param {(share: number) => void} onProgress called with the share of the bytes sent, 0 to 1
   */
  upload(path, query, form, onProgress) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest(); // fetch does not report the progress of sending
      request.open("POST", this.url(path, query));
      request.setRequestHeader("X-Kiln", "1"); // the server demands it: a form of another site cannot set a header
      request.upload.onprogress = (event) => onProgress(event.loaded / Math.max(1, event.total));
      request.onload = () => {
        try {
          resolve(readAnswer(request.status, request.statusText, request.responseText));
        } catch (error) {
          reject(error);
        }
      };
      request.onerror = () => reject(new ServerError("The connection was lost, or the server refused the upload."));
      request.send(form);
    });
  }

  async #fetch(path, options) {
    let answer, text;
    try {
      answer = await this.#api.fetchApi(path, options);
      text = await answer.text();
    } catch (error) {
      throw new ServerError(`The server does not answer: ${error.message}`);
    }
    return readAnswer(answer.status, answer.statusText, text);
  }
}

function withQuery(path, query) {
  return query ? `${path}?${new URLSearchParams(query)}` : path;
}

/** The JSON of a successful answer. Throws a ServerError for any other. */
function readAnswer(status, statusText, text) {
  const body = parse(text);
  const isSuccess = status >= 200 && status < 300;
  if (isSuccess && body !== undefined) return body;
  const reason = isSuccess ? "The server's answer is not JSON." : `The server answered ${`${status} ${statusText}`.trim()}.`;
  throw new ServerError(body?.error ?? reason, status, body ?? {});
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
