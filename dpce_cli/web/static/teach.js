"use strict";
// Captions of the open photo, teaching the model with them, and measuring it. Uses names of page.js.
const at = (what) => `/${what}/${encodeURIComponent($("#gallery").value)}`;
let lesson = 0;

async function request(place, method = "GET", content = null) {
  const body = content && JSON.stringify(content);
  try {
    const answer = await fetch(place, { method, body });
    return answer.ok ? await answer.json() : await answer.text();
  } catch {
    return "The server does not answer. Is dpce serve still running?";
  }
}

async function captions(method = "GET", caption = null) {
  const hit = hits[shown], part = $("#captions"), list = part.querySelector("ul"), near = part.querySelector(".suggested");
  if (method === "GET") {
    list.replaceChildren();
    $("#caption").value = "";
    near.hidden = true;
  }
  const found = await request(`${at("captions")}/${hit.key}`, method, caption === null ? null : { caption });
  if (hit !== hits[shown]) return;
  part.querySelector(".problem").textContent = typeof found === "string" ? found : "";
  if (typeof found === "string") return;
  list.replaceChildren(...found.captions.map((text) => withButton(text, "Remove", () => captions("DELETE", text))));
  near.hidden = !found.suggested.length;
  near.querySelector("ul").replaceChildren(...found.suggested.map((text) => withButton(text, "Accept", () => captions("POST", text))));
  if (method === "POST") $("#caption").value = "";
  if (method !== "GET") teaching();
}

function withButton(text, word, act) {
  const item = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  button.textContent = word;
  button.setAttribute("aria-label", `${word} the caption ${text}`);
  button.onclick = act;
  item.append(text + " ", button);
  return item;
}

async function teaching(method = "GET") {
  clearTimeout(lesson);
  const found = await request(at("teaching"), method), part = $("#teach"), button = part.querySelector("[name=teach]");
  if (typeof found === "string") {
    part.querySelector(".message").textContent = found;
    return;
  }
  part.hidden = !found.captions;
  part.querySelector(".count").textContent = `You have written ${found.captions} captions. ${found.untaught} of them can still be taught.`;
  part.querySelector(".file").textContent = found.file;
  const wasRunning = button.disabled;
  button.disabled = found.running;
  part.querySelector(".message").textContent = found.message || (found.running ? "Learning…" : "");
  if (found.running) lesson = setTimeout(teaching, 1000);
  else if (wasRunning && location.search) show();
}

async function measure() {
  const message = $("#teach .message"), found = await request(at("quality"));
  if (typeof found === "string" || found.message) {
    message.textContent = found.message || found;
    return;
  }
  const share = ({ value, low, high }) => `${Math.round(100 * value)} % (${Math.round(100 * low)} to ${Math.round(100 * high)} %)`;
  const { r1, r5, r10, gallery } = found.sentence_to_photo;
  message.textContent = `${found.captions} captions of ${found.photos} photos that were not taught find their photo among ${gallery.toLocaleString()}: ` +
    `first in ${share(r1)}, among the first 5 in ${share(r5)}, among the first 10 in ${share(r10)}. In brackets: intervals of 95 % confidence.`;
}

$("#captions form").onsubmit = (event) => {
  event.preventDefault();
  if ($("#caption").value.trim()) captions("POST", $("#caption").value);
};
$("#teach [name=teach]").onclick = () => teaching("POST");
$("#teach [name=measure]").onclick = measure;
$("#gallery").addEventListener("change", () => teaching());
ready.then(() => teaching());
