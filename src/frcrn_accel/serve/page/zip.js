// Put files into a ZIP archive, uncompressed: audio hardly gets smaller.

const MAX_BYTES = 0xffffffff;

/**
 * Make an archive.
 *
 * @param {{name: string, blob: Blob}[]} files
 * @returns {Promise<Blob>}
 * @throws {RangeError} It would have more than 4 GiB.
 */
export async function zipOf(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, blob } of files) {
    const bytes = new TextEncoder().encode(name);
    const fields = { crc: await crcOf(blob), size: blob.size, offset, name: bytes };
    const header = record(0x04034b50, fields);
    parts.push(header, blob);
    directory.push(record(0x02014b50, fields));
    offset += header.length + blob.size;
    if (offset > MAX_BYTES) throw new RangeError("a ZIP archive holds 4 GiB at most");
  }
  const size = directory.reduce((sum, entry) => sum + entry.length, 0);
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(8, files.length, true);
  end.setUint16(10, files.length, true);
  end.setUint32(12, size, true);
  end.setUint32(16, offset, true);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** Give each name once: the second `a.wav` becomes `a (2).wav`. @param {string[]} names */
export function distinct(names) {
  const used = new Set();
  return names.map((name) => {
    let free = name;
    for (let count = 2; used.has(free.toLowerCase()); count++) free = name.replace(/(\.[^.]*)?$/, ` (${count})$1`);
    used.add(free.toLowerCase());
    return free;
  });
}

/** Make the header of a file, or its entry in the directory. */
function record(kind, { crc, size, offset, name }) {
  const isEntry = kind === 0x02014b50;
  const view = new DataView(new ArrayBuffer(isEntry ? 46 : 30));
  let at = 0;
  const put = (value, bytes) => {
    if (bytes === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += bytes;
  };
  put(kind, 4);
  if (isEntry) put(20, 2);
  put(20, 2);
  put(0x800, 2); // names are UTF-8
  put(0, 2); // stored
  put(0, 2); // 00:00
  put(0x21, 2); // 1 January 1980: the same files give the same archive
  put(crc, 4);
  put(size, 4);
  put(size, 4);
  put(name.length, 2);
  put(0, 2);
  if (isEntry) {
    for (let count = 0; count < 3; count++) put(0, 2);
    put(0, 4);
    put(offset, 4);
  }
  const bytes = new Uint8Array(view.byteLength + name.length);
  bytes.set(new Uint8Array(view.buffer));
  bytes.set(name, view.byteLength);
  return bytes;
}

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

async function crcOf(blob) {
  let crc = 0xffffffff;
  const reader = blob.stream().getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return (crc ^ 0xffffffff) >>> 0;
    for (const byte of value) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  }
}
