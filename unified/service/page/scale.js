/* From values to pixels, and which values to write at an axis. */

/** Return a scale of `[low, high]` onto `[from, to]`; logarithmic scales leave out what is not positive. */
export function makeScale({ low, high, from, to, isLog }) {
  const warp = isLog ? Math.log10 : (value) => value;
  const [start, end] = [warp(low), warp(high)];
  const span = end - start || 1;
  const scale = (value) => from + ((warp(value) - start) / span) * (to - from);
  scale.invert = (pixel) => {
    const value = start + ((pixel - from) / (to - from)) * span;
    return isLog ? 10 ** value : value;
  };
  return scale;
}

/** Return about `count` round values in `[low, high]`. */
export function ticks(low, high, count) {
  const step = roundStep((high - low) / Math.max(1, count));
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1) {
    found.push(Number((index * step).toPrecision(12)));
  }
  return found;
}

/** Return powers of ten in `[low, high]`, with 2 and 5 between them when there is room. */
export function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return ticks(low, high, count).filter((value) => value > 0);
  const factors = decades > count ? [1] : decades * 3 > count ? [1, 3] : [1, 2, 5];
  const stride = Math.max(1, Math.ceil(decades / count));
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += stride) {
    found.push(...factors.map((factor) => Number((factor * 10 ** power).toPrecision(3))));
  }
  return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
}

/** Return round clock times, seconds since 1970, in `[low, high]`. */
export function timeTicks(low, high, count) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400];
  const wanted = (high - low) / Math.max(1, count);
  const step = steps.find((one) => one >= wanted) ?? steps.at(-1);
  const shift = new Date(low * 1000).getTimezoneOffset() * 60;
  const found = [];
  for (let at = Math.ceil((low - shift) / step) * step + shift; at <= high; at += step) found.push(at);
  return found;
}

/** Return round sizes in bytes: multiples of powers of two. */
export function byteTicks(low, high, count) {
  const step = 2 ** Math.ceil(Math.log2(Math.max(1, (high - low) / Math.max(1, count))));
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(value);
  return found;
}

function roundStep(wanted) {
  const power = 10 ** Math.floor(Math.log10(wanted || 1));
  const factor = wanted / power;
  return (factor <= 1 ? 1 : factor <= 2 ? 2 : factor <= 5 ? 5 : 10) * power;
}

/** Thin points to what `width` pixels can show: the lowest and the highest of each pixel stay, so no spike is lost. */
export function thin(points, x, width) {
  if (points.length <= width * 2) return points;
  const kept = [];
  let start = 0;
  while (start < points.length) {
    const pixel = Math.round(x(points[start][0]));
    let end = start;
    let [low, high] = [start, start];
    for (; end < points.length && Math.round(x(points[end][0])) === pixel; end += 1) {
      if (points[end][1] < points[low][1]) low = end;
      if (points[end][1] > points[high][1]) high = end;
    }
    kept.push(points[Math.min(low, high)]);
    if (low !== high) kept.push(points[Math.max(low, high)]);
    start = Math.max(end, start + 1);
  }
  return kept;
}
