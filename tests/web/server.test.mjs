// Requests to the server: what is sent, what comes back, and how failures are reported.

import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import { Server, ServerError } from "../../web/server.mjs";

/** A stand-in for ComfyUI's `api` that answers every request with `respond(path, options)` and records the requests. */
function apiWith(respond) {
  const requests = [];
  const fetchApi = async (path, options) => {
    requests.push({ path, ...options });
    return respond(path, options);
  };
  return { requests, fetchApi, apiURL: (path) => `/api${path}` };
}

const answering = (body, init) => new Server(apiWith(() => new Response(body, init)));

test("a GET request carries its query and gives the answer's JSON", async () => {
  const api = apiWith(() => Response.json([1, null]));
  assert.deepEqual(await new Server(api).get("/kiln/runs", { workflow_id: "a&b=c d" }), [1, null]);
  assert.deepEqual(api.requests, [{ path: "/kiln/runs?workflow_id=a%26b%3Dc+d" }]);
  await new Server(api).get("/kiln/presets");
  assert.equal(api.requests[1].path, "/kiln/presets");
});

test("a POST request sends JSON and says so", async () => {
  const api = apiWith(() => Response.json({ saved: [] }));
  assert.deepEqual(await new Server(api).post("/kiln/x", { a: [1], left: undefined }), { saved: [] });
  const [{ path, method, headers, body }] = api.requests;
  assert.deepEqual([path, method, headers["Content-Type"], body], ["/kiln/x", "POST", "application/json", '{"a":[1]}']);
});

test("a URL lies under the API, whatever its query holds", () => {
  const server = new Server(apiWith());
  assert.equal(server.url("/view"), "/api/view");
  assert.equal(server.url("/kiln/thumbnail", { name: "a&b #1?.png", side: 64 }), "/api/kiln/thumbnail?name=a%26b+%231%3F.png&side=64");
});

for (const send of ["get", "post"]) {
  test(`a refusal of a ${send} is an error with the server's own words, the status and the answer`, async () => {
    const server = answering('{"error": "No such run.", "changed": {"a": "b"}}', { status: 409 });
    const expected = { name: "ServerError", message: "No such run.", status: 409, body: { error: "No such run.", changed: { a: "b" } } };
    await assert.rejects(server[send]("/kiln/x", {}), expected);
  });
}

for (const [body, init, message] of [
  ["<h1>Bad gateway</h1>", { status: 502, statusText: "Bad Gateway" }, "The server answered 502 Bad Gateway."],
  ["", { status: 500 }, "The server answered 500."],
  ["null", { status: 500 }, "The server answered 500."],
  ["<html>", { status: 200 }, "The server's answer is not JSON."],
]) {
  test(`"${body}" with status ${init.status} is reported as "${message}"`, async () => {
    await assert.rejects(answering(body, init).get("/kiln/x"), { name: "ServerError", message, status: init.status, body: {} });
  });
}

test("a server that cannot be reached is a ServerError too", async () => {
  const server = new Server(apiWith(() => Promise.reject(new TypeError("Failed to fetch"))));
  await assert.rejects(server.get("/kiln/x"), { name: "ServerError", message: "The server does not answer: Failed to fetch", status: 0 });
});

// ---------------------------------------------------------------- uploads

afterEach(() => delete globalThis.XMLHttpRequest);

/** Replaces XMLHttpRequest by one that `respond(request)` answers; gives the list of the requests sent. */
function withUploads(respond) {
  const sent = [];
  globalThis.XMLHttpRequest = class {
    upload = {};
    headers = {};
    statusText = "";
    open(method, url) {
      Object.assign(this, { method, url });
    }
    setRequestHeader(name, value) {
      this.headers[name] = value;
    }
    send(form) {
      this.form = form;
      sent.push(this);
      respond(this);
    }
  };
  return sent;
}

const answerUpload = (status, responseText) => (request) => {
  Object.assign(request, { status, responseText });
  request.onload();
};
const upload = (onProgress = () => {}) => new Server(apiWith()).upload("/kiln/dataset/upload", { name: "my cats" }, "form", onProgress);

test("an upload sends the form with the header that the server demands, and reports its progress", async () => {
  const shares = [];
  const sent = withUploads((request) => {
    for (const loaded of [0, 5, 10]) request.upload.onprogress({ loaded, total: 10 });
    request.upload.onprogress({ loaded: 0, total: 0 });
    answerUpload(200, '{"folder": "my cats"}')(request);
  });
  assert.deepEqual(await upload((share) => shares.push(share)), { folder: "my cats" });
  const [{ method, url, headers, form }] = sent;
  assert.deepEqual([method, url, headers, form], ["POST", "/api/kiln/dataset/upload?name=my+cats", { "X-Kiln": "1" }, "form"]);
  assert.deepEqual(shares, [0, 0.5, 1, 0]);
});

test("an upload that is refused fails as any other request does", async () => {
  withUploads(answerUpload(507, '{"error": "The disk is full."}'));
  await assert.rejects(upload(), { name: "ServerError", message: "The disk is full.", status: 507 });
  withUploads(answerUpload(413, ""));
  await assert.rejects(upload(), { message: "The server answered 413." });
});

test("an upload whose connection breaks is a ServerError without a status", async () => {
  withUploads((request) => request.onerror());
  await assert.rejects(upload(), (error) => error instanceof ServerError && error.status === 0 && /connection was lost/.test(error.message));
});
