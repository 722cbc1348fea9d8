// Seeded noise, the same as `ddimlib.SeededNoise` draws: seed 3 here is seed 3 there. PyTorch's generator on a CPU is the
// Mersenne twister; NumPy's SeedSequence turns (seed of the run, number of the image) into a seed of its own.

// MT19937 (Matsumoto & Nishimura 1998), seeded as torch.Generator().manual_seed(seed) does: the low 32 bits count.
class Generator {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, before) + i;
    }
    this.next = 624;
  }

  // 32 random bits
  random() {
    const s = this.state;
    if (this.next === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
        s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.next = 0;
    }
    let y = s[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  // torch.randn(n), n a multiple of 16: uniform numbers of 24 bits, paired eight apart (Box & Muller 1958)
  randn(n) {
    if (n % 16) throw new RangeError(`randn draws multiples of 16 numbers, got ${n}`);
    const z = Float32Array.from({ length: n }, () => (this.random() & 0xffffff) / 2 ** 24);
    for (let i = 0; i < n; i += i % 16 === 7 ? 9 : 1) {
      const radius = Math.sqrt(-2 * Math.log(1 - z[i]));
      const angle = 2 * Math.PI * z[i + 8];
      z[i] = radius * Math.cos(angle);
      z[i + 8] = radius * Math.sin(angle);
    }
    return z;
  }
}

// The low 32 bits of ddimlib's mixed_seed(...entropy), each of entropy in 0..2³²-1 and at most four of them: NumPy's
// SeedSequence (after O'Neill 2015), its first 64 bits, shifted right by one.
function mixed_seed(...entropy) {
  let factor = 0x43b0d7e5;
  const hashed = (value, multiplier) => {
    value ^= factor;
    factor = Math.imul(factor, multiplier);
    value = Math.imul(value, factor);
    return (value ^ (value >>> 16)) >>> 0;
  };
  const pool = [0, 1, 2, 3].map((i) => hashed(entropy[i] ?? 0, 0x931e8875));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) {
      if (from === to) continue;
      const mixed = Math.imul(0xca01f9dd, pool[to]) - Math.imul(0x4973f715, hashed(pool[from], 0x931e8875));
      pool[to] = (mixed ^ (mixed >>> 16)) >>> 0;
    }
  }
  factor = 0x8b51f9dd;
  const [low, high] = [0, 1].map((i) => hashed(pool[i], 0x58f38ded));
  return ((high << 31) | (low >>> 1)) >>> 0;
}

// Seeds of samples start, …, start + n - 1 of the run `seed`; of each only the low 32 bits, which are all that count.
export function sample_seeds(seed, n, start = 0) {
  return Array.from({ length: n }, (_, i) => mixed_seed(seed, start + i));
}

// A generator of its own for each sample, so that an image is the same whatever batch it is drawn in.
export class SeededNoise {
  constructor(seeds) {
    this.generators = seeds.map((seed) => new Generator(seed));
  }

  // The next N(0, I) draw: for each sample, `size` numbers
  draw(size) {
    const all = new Float32Array(size * this.generators.length);
    this.generators.forEach((generator, i) => all.set(generator.randn(size), i * size));
    return all;
  }
}
