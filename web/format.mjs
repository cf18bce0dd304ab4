// Numbers as text.

/** A count with its noun: "1 picture", "2 pictures". */
export function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** A time in seconds as hours, minutes and seconds: 3661 -> "1:01:01", 75 -> "1:15". */
export function duration(seconds) {
  const total = Math.max(0, Math.round(seconds));
  const parts = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return shown.map((part, index) => (index ? String(part).padStart(2, "0") : String(part))).join(":");
}

/** A loss, with a fixed number of decimals so that the text keeps its width while the loss changes. */
export function lossText(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2);
  return value.toFixed(size < 10 ? 4 : 2);
}

/** A learning rate: 0.0001 -> "1e-4". */
export function rateText(value) {
  if (!Number.isFinite(value)) return "–";
  return value >= 0.01 || value === 0 ? String(Number(value.toPrecision(3))) : withoutZeros(value.toExponential(2));
}

/** Speed from the time of a step: "2.0 steps/s", or "2.35 s/step" where a step takes longer than a second. */
export function speedText(secondsPerStep) {
  return secondsPerStep > 1 ? `${secondsPerStep.toFixed(2)} s/step` : `${(1 / secondsPerStep).toFixed(1)} steps/s`;
}

/** Memory from bytes: "5.2 of 24 GB"; without a total "5.2 GB". */
export function memoryText({ used, total }) {
  const inGigabytes = (bytes) => {
    const value = bytes / 2 ** 30;
    return value < 10 ? value.toFixed(1) : String(Math.round(value));
  };
  return total > 0 ? `${inGigabytes(used)} of ${inGigabytes(total)} GB` : `${inGigabytes(used)} GB`;
}

/** The mantissa without its trailing zeros: "1.00e-4" -> "1e-4". */
function withoutZeros(text) {
  return text.replace(/\.?0+e/, "e");
}
