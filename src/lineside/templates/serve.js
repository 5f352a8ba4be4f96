"use strict";
// The page of `lineside serve`. Everything that the model or the server says is set as text, never as markup.

const $ = (selector, within = document) => within.querySelector(selector);
const PHASES = { picture: "picture", queue: "queue", features: "encode", prefill: "read", decode: "write" };
const KEPT = 24; // earlier answers, in this window only
let models = {};
let frame = null; // data URL of the picture

function key() {
  return sessionStorage.getItem("key") || "";
}

async function call(path, body) {
  const headers = { Authorization: `Bearer ${key()}` };
  if (body) headers["Content-Type"] = "application/json";
  const reply = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  const said = await reply.json();
  if (reply.status === 401) $("#key-row").hidden = false;
  if (!reply.ok) throw new Error(said.error ? said.error.message : `status ${reply.status}`);
  return said;
}

function make(tag, text, kind) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

async function loadModels() {
  try {
    models = Object.fromEntries((await call("v1/models")).data.map((model) => [model.id, model.lineside]));
  } catch (error) {
    $("#problem").textContent = error.message;
    return;
  }
  $("#state").textContent = "";
  if (!Object.keys(models).length) {
    $("#state").textContent = "the model is still loading ...";
    setTimeout(loadModels, 2000);
    return;
  }
  $("#model").replaceChildren(...Object.keys(models).map((name) => new Option(name, name)));
  $("#key-row").hidden = true;
  $("#problem").textContent = "";
  for (const line of document.querySelectorAll("#questions li")) fillTasks(line);
  if (!$("#questions li")) addQuestion();
  document.body.setAttribute("aria-busy", "false");
  showDay();
}

function tasks() {
  return (models[$("#model").value] || { tasks: {} }).tasks;
}

function fillTasks(line) {
  const select = $(".task", line);
  const before = select.value;
  select.replaceChildren(new Option("task: by its words", ""), ...Object.keys(tasks()).map((n) => new Option(n, n)));
  if (before in tasks()) select.value = before;
}

function addQuestion() {
  const line = $("#question").content.cloneNode(true).firstElementChild;
  $("#questions").append(line);
  fillTasks(line);
  $(".task", line).addEventListener("change", () => {
    const task = tasks()[$(".task", line).value];
    const text = $(".text", line);
    if (task && task.phrasings.length && (!text.value || text.dataset.from === text.value)) {
      text.value = text.dataset.from = task.phrasings[0];
    }
  });
  $(".remove", line).addEventListener("click", () => {
    if (document.querySelectorAll("#questions li").length > 1) line.remove();
    else $(".text", line).value = "";
  });
  $(".text", line).focus();
}

function show(file) {
  if (!file || !file.type.startsWith("image/")) {
    $("#problem").textContent = "that is no picture";
    return;
  }
  const reader = new FileReader();
  reader.addEventListener("load", () => {
    frame = reader.result;
    $("#picture").src = frame;
    $("#picture").hidden = false;
    $("#hint").hidden = true;
    $("#drop").classList.add("full");
    $("#problem").textContent = "";
  });
  reader.readAsDataURL(file);
}

function said(value) {
  if (value === null) return "no answer of its kind";
  if (value === true || value === false) return value ? "yes" : "no";
  if (Array.isArray(value)) {
    if (!value.length) return "none";
    return value.map((one) => (typeof one === "object" ? `${one.count} ${one.name}` : one)).join(", ");
  }
  return String(value);
}

function percent(share) {
  return `${(100 * share).toFixed(1)}%`;
}

function answerCard(one) {
  const card = $("#answer").content.cloneNode(true).firstElementChild;
  const typed = one.answer;
  $(".asked", card).textContent = one.question;
  const unit = typed.unit && typed.kind === "number" ? ` ${typed.unit}` : "";
  $(".value", card).textContent = typed.value === null ? typed.text || said(null) : said(typed.value) + unit;
  $(".decision", card).textContent = typed.decision;
  $(".decision", card).classList.add(typed.decision);
  $(".because", card).textContent = typed.because;
  const sure = typed.confidence === null
    ? `${percent(one.model_probability)}, the model's own, not calibrated`
    : `${percent(typed.confidence)}, calibrated`;
  const thinking = { full: "yes", cut: "cut by the deadline", off: "off" }[one.thinking];
  for (const [name, text] of [["sure", sure], ["task", typed.task || "not known"], ["thinking", thinking]]) {
    $("dl", card).append(make("dt", name), make("dd", text));
  }
  if (one.outcome_id) tellTruth($(".truth", card), one.outcome_id);
  if (typed.trace) $(".trace", card).textContent = typed.trace;
  else $("details", card).remove();
  return card;
}

function tellTruth(form, id) {
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const verdict = $(".verdict", form);
    try {
      verdict.textContent = (await call("v1/outcomes", { id, truth: $(".text", form).value.trim() })).verdict;
      showDay();
    } catch (error) {
      verdict.textContent = error.message;
    }
  });
}

function timeBar(own) {
  const box = make("div", "", "time");
  const bar = make("div", "", "bar");
  const legend = make("div", "", "legend");
  for (const [phase, name] of Object.entries(PHASES)) {
    const part = make("span", "", phase);
    part.style.flexGrow = own.ms[phase];
    bar.append(part);
    const entry = make("span", `${name} ${Math.round(own.ms[phase])}`);
    entry.prepend(make("i", "", phase));
    legend.append(entry);
  }
  const given = own.deadline_ms === null ? "no deadline" : `deadline ${Math.round(own.deadline_ms)} ms`;
  legend.append(make("span", `${Math.round(own.ms.total)} ms in all; ${given}`, "muted"));
  box.append(bar, legend);
  return box;
}

function thumbnail() {
  const image = $("#picture");
  const canvas = document.createElement("canvas");
  const scale = 144 / Math.max(image.naturalWidth, image.naturalHeight, 1);
  canvas.width = Math.max(1, image.naturalWidth * scale);
  canvas.height = Math.max(1, image.naturalHeight * scale);
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.8);
}

function remember(answers) {
  const small = thumbnail();
  for (const one of answers) {
    const line = document.createElement("li");
    const image = make("img", "");
    image.src = small;
    image.alt = "";
    const words = make("span", "");
    words.append(make("span", one.question, "muted"), make("br", ""), one.answer.text || said(null));
    line.append(image, words, make("span", one.answer.decision, `decision ${one.answer.decision}`));
    $("#earlier").prepend(line);
  }
  while ($("#earlier").children.length > KEPT) $("#earlier").lastElementChild.remove();
  $("#earlier-title").hidden = false;
}

async function ask() {
  const lines = [...document.querySelectorAll("#questions li")];
  const questions = lines
    .map((line) => ({ question: $(".text", line).value.trim(), task: $(".task", line).value || null }))
    .filter((one) => one.question);
  const deadline = $("#deadline").value.trim();
  if (!frame) return void ($("#problem").textContent = "choose a frame first");
  if (!questions.length) return void ($("#problem").textContent = "write a question first");
  if (deadline && !(Number(deadline) > 0)) return void ($("#problem").textContent = "the deadline is a number of ms");
  const body = { model: $("#model").value, image: frame, questions };
  if (deadline) body.deadline_ms = Number(deadline);
  $("#send").disabled = true;
  $("#state").textContent = "asking ...";
  $("#problem").textContent = "";
  try {
    const found = await call("v1/frames/questions", body);
    $("#answers").replaceChildren(timeBar(found.lineside), ...found.answers.map(answerCard));
    remember(found.answers);
    showDay();
  } catch (error) {
    $("#problem").textContent = error.message;
  } finally {
    $("#send").disabled = false;
    $("#state").textContent = "";
  }
}

// The last day: one chart of latency, one of the answers whose truth was told.
function draw(chart, points, lines, top, unit) {
  const named = "http://www.w3.org/2000/svg";
  const add = (tag, attributes, text) => {
    const element = document.createElementNS(named, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text) element.textContent = text;
    chart.append(element);
  };
  const [first, last] = [points[0].time, points[points.length - 1].time];
  const x = (time) => 10 + (380 * (time - first)) / Math.max(last - first, 1);
  const y = (value) => 90 - (72 * value) / top;
  chart.replaceChildren();
  for (const [level, name] of [[0, "0"], [top, unit(top)]]) {
    add("path", { class: "grid", d: `M10 ${y(level)}H390` });
    add("text", { x: 12, y: y(level) - 3 }, name);
  }
  for (const [kind, value] of lines) {
    const drawn = points.map((point) => [x(point.time), value(point)]).filter(([, at]) => at !== null);
    add("path", { class: kind, d: drawn.map(([at, high], n) => `${n ? "L" : "M"}${at} ${y(high)}`).join("") });
    for (const [at, high] of drawn) add("circle", { class: kind, cx: at, cy: y(high), r: 2 });
  }
  const clock = (time) => new Date(1000 * time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  add("text", { x: 10, y: 105 }, clock(first));
  if (last > first) add("text", { x: 390, y: 105, "text-anchor": "end" }, clock(last));
}

async function showDay() {
  if (document.hidden || !Object.keys(models).length) return;
  let day;
  try {
    day = (await call("v1/timeline"))[$("#model").value];
  } catch {
    return; // the next one may come
  }
  $("#day").hidden = !day || !day.points.length;
  if ($("#day").hidden) return;
  const { points, minutes } = day;
  const count = (name) => points.reduce((sum, point) => sum + point[name], 0);
  const all = (name) => count(name).toLocaleString("en");
  const each = minutes === 1 ? "a point is a minute" : `a point is ${minutes} minutes`;
  const slowest = Math.max(1, ...points.map((point) => point.p95_ms || 0));
  const lines = [["median", (point) => point.p50_ms], ["tail", (point) => point.p95_ms]];
  draw($("#latency"), points, lines, slowest, (ms) => `${Math.round(ms)} ms`);
  $("#latency + figcaption").textContent = `Latency: median (blue) and 95th percentile (orange); ${each}. ` +
    `${all("answered")} answered, ${all("late")} of them late, ${all("refused")} refused.`;
  const told = count("right") + count("wrong");
  const share = ({ right, wrong }) => (right + wrong ? right / (right + wrong) : null);
  draw($("#accuracy"), points, [["right", share]], 1, percent);
  $("#accuracy + figcaption").textContent = told
    ? `Right, of the answers whose truth was told: ${all("right")} of ${told.toLocaleString("en")}.`
    : "Right, of the answers whose truth was told: none was told.";
}

$("#model").addEventListener("change", showDay);
$("#model").addEventListener("change", () => document.querySelectorAll("#questions li").forEach(fillTasks));
$("#add").addEventListener("click", addQuestion);
$("#form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("#key").addEventListener("change", () => {
  sessionStorage.setItem("key", $("#key").value.trim());
  loadModels();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    ask();
  }
});
const drop = $("#drop");
drop.addEventListener("click", () => $("#file").click());
drop.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.ctrlKey) $("#file").click();
});
$("#file").addEventListener("click", (event) => event.stopPropagation());
$("#file").addEventListener("change", () => show($("#file").files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") show(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) show(file);
});
loadModels();
setInterval(showDay, 10000);
