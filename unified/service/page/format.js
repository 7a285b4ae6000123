/* Numbers and times as people read them. Unknown values are a dash. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
export const DASH = "–";

/** Is it a number that can be drawn? JSON has no NaN, so a loss that is none arrives as null or a word. */
export function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** 1536 -> "1.5 KiB". */
export function bytes(value) {
  if (!isNumber(value)) return DASH;
  let unit = 0;
  while (value >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value >= 9.95 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** Four significant digits: 0.3124, 12.91, 1.2e-7. */
export function number(value) {
  if (typeof value === "string") return value;
  if (!isNumber(value)) return DASH;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2).replace("e+", "e");
  if (Number.isInteger(value)) return String(value);
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 4);
}

/** 3725 -> "1 h 02 min". */
export function duration(seconds) {
  if (!isNumber(seconds)) return DASH;
  if (seconds < 0) return "0 s";
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** Of seconds since 1970: "12:03" here, with seconds if asked, with the day if it is not today. */
export function clock(seconds, withSeconds = false) {
  if (!isNumber(seconds)) return DASH;
  const date = new Date(seconds * 1000);
  const time = [date.getHours(), date.getMinutes(), ...(withSeconds ? [date.getSeconds()] : [])].map(two).join(":");
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday ? time : `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${time}`;
}

/** Seconds since 1970 of what the server gives as RFC 3339. */
export function instant(text) {
  if (isNumber(text)) return text;
  const milliseconds = Date.parse(text ?? "");
  return Number.isNaN(milliseconds) ? null : milliseconds / 1000;
}

/** "1 job", "2 jobs". */
export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

function two(value) {
  return String(value).padStart(2, "0");
}
