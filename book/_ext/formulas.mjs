// One formula a line in, {tex, display} as JSON; one answer a line out, {html} or {error}.
import { createInterface } from "node:readline";
import katex from "katex";

for await (const line of createInterface({ input: process.stdin })) {
  const { tex, display } = JSON.parse(line);
  let answer;
  try {
    // strict: no warning about letters such as η in \text; MathML for screen readers, HTML for eyes.
    answer = { html: katex.renderToString(tex, { displayMode: display, strict: "ignore", output: "htmlAndMathml" }) };
  } catch (error) {
    answer = { error: error.message };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
