//! The bytes of a file as UTF-8: gzip and zstd are decompressed, and byte order marks are obeyed.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::GzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// A text expands to about 10 times its compressed size. A file that expands further than this is refused, so that a
/// small file cannot occupy the machine for hours.
const MAX_EXPANSION: u64 = 200;
/// Number of decompressed bytes that are allowed at any expansion.
const EXPANSION_ALLOWANCE: u64 = 64 << 20;
/// Number of bytes by which the encoding is recognised.
const SAMPLE_BYTES: u64 = 64 << 10;

/// The beginnings of files that hold no text, and what they are.
const NO_TEXT: [(usize, &[u8], &str); 22] = [
    (0, b"\x1f\x8b", "compressed twice (gzip inside); decompress it once"),
    (0, b"\x28\xb5\x2f\xfd", "compressed twice (zstd inside); decompress it once"),
    // After "BZh" and a digit, which may also begin a text.
    (4, b"1AY&SY", "compressed with bzip2; decompress it, or give gzip or zstd"),
    (0, b"\xfd7zXZ\0", "compressed with xz; decompress it, or give gzip or zstd"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4; decompress it, or give gzip or zstd"),
    (0, b"PK\x03\x04", "a zip archive; unpack it, and give the file or folder that it holds"),
    (257, b"ustar", "a tar archive; unpack it, and give the file or folder that it holds"),
    (0, b"\x5d\0\0", "compressed with lzma; decompress it, or give gzip or zstd"),
    (0, b"\x1f\x9d", "compressed with compress; decompress it, or give gzip or zstd"),
    (0, b"PAR1\x15", "a Parquet file; convert it to JSON lines"),
    (0, b"ARROW1\0\0", "an Arrow file; convert it to JSON lines"),
    (0, b"FEA1", "a Feather file; convert it to JSON lines"),
    (0, b"\xff\xff\xff\xff", "an Arrow stream; convert it to JSON lines"),
    (0, b"Obj\x01", "an Avro file; convert it to JSON lines"),
    (0, b"ORC\x0a", "an ORC file; convert it to JSON lines"),
    (0, b"\x93NUMPY", "an array of NumPy; convert it to JSON lines"),
    (0, b"\xd0\xcf\x11\xe0", "an old Office file; save it as CSV or text in UTF-8"),
    (
        0,
        b"7z\xbc\xaf\x27\x1c",
        "a 7z archive; unpack it, and give the file or folder that it holds",
    ),
    (0, b"Rar!\x1a\x07", "a rar archive; unpack it, and give the file or folder that it holds"),
    (0, b"%PDF-", "a PDF; extract its text first"),
    (0, b"SQLite format 3\0", "an SQLite database; export its rows as CSV or JSON lines"),
    (0, b"version https://git-lfs.github.com/spec/", "a Git LFS pointer; run git lfs pull"),
];

/// The names in a zip archive that is an Office file.
const OFFICE: [&[u8]; 5] =
    [b"[Content_Types].xml", b"xl/", b"word/", b"ppt/", b"mimetypeapplication/vnd.oasis"];

/// Why a file in another encoding is refused.
pub(super) const NOT_UTF8: &str = "it is not UTF-8; convert it, for example from Western European: \
                                   iconv -f WINDOWS-1252 -t UTF-8";

/// Opens a file, and decodes it as [`decode`] does.
pub fn open(file: &Path) -> io::Result<Box<dyn BufRead>> {
    decode(File::open(file)?)
}

/// Returns a reader of the text as UTF-8 without the byte order mark.
///
/// gzip and zstd are recognised by their first bytes, and UTF-16 by its byte order mark. Bytes without a mark pass
/// unchanged.
///
/// # Errors
///
/// Returns any I/O error, and [`io::ErrorKind::InvalidData`] for a file that holds no text, such as an archive, for
/// UTF-32, and for UTF-16 without a mark. The reader itself returns an error for damaged data, and for data that
/// expands to more than 200 times its size.
pub fn decode<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn BufRead + 'a>> {
    let mut reader = peek(decompress(reader)?, SAMPLE_BYTES)?;
    let sample = reader.get_ref().0.get_ref();
    let reason = NO_TEXT
        .iter()
        .find(|(at, magic, _)| sample.get(*at..).is_some_and(|bytes| bytes.starts_with(magic)));
    if let Some((_, magic, reason)) = reason {
        let contains = |name: &&[u8]| sample.windows(name.len()).any(|window| window == *name);
        if *magic == b"PK\x03\x04" && OFFICE.iter().any(contains) {
            return Err(invalid("it is an Office file; save it as CSV or text in UTF-8".into()));
        }
        return Err(invalid(format!("it is {reason}")));
    }
    let utf32 = sample.starts_with(b"\xff\xfe\0\0") || sample.starts_with(b"\0\0\xfe\xff");
    if utf32 {
        return Err(invalid("it is UTF-32; convert it to UTF-8: iconv -f UTF-32 -t UTF-8".into()));
    }
    let (mark, big_endian) = match sample[..] {
        [0xef, 0xbb, 0xbf, ..] => (3, None),
        [0xff, 0xfe, ..] => (2, Some(false)),
        [0xfe, 0xff, ..] => (2, Some(true)),
        _ => (0, None),
    };
    if big_endian.is_none() {
        check_nuls(sample)?;
        check_utf8(sample)?;
    }
    reader.get_mut().0.set_position(mark);
    Ok(match big_endian {
        None => Box::new(BufReader::new(reader)),
        Some(big_endian) => Box::new(BufReader::new(Utf16::new(reader, big_endian))),
    })
}

/// Returns an error if NUL bytes show that the sample is UTF-16, UTF-32 or binary. A few NULs may be part of a text.
fn check_nuls(sample: &[u8]) -> io::Result<()> {
    // The numbers of NULs at the four positions of a UTF-32 character.
    let nuls = [0, 1, 2, 3]
        .map(|position| sample.iter().skip(position).step_by(4).filter(|byte| **byte == 0).count());
    if nuls.iter().sum::<usize>() * 32 <= sample.len() {
        return Ok(());
    }
    // No text has NUL characters in UTF-32.
    let characters = sample.len() / 4;
    let encoding = match nuls {
        [0, _, 0, _] => "UTF-16LE",
        [_, 0, _, 0] => "UTF-16BE",
        [0, _, upper, most] if (upper, most) == (characters, characters) => "UTF-32LE",
        [most, upper, _, 0] if (upper, most) == (characters, characters) => "UTF-32BE",
        _ => return Err(invalid("it is binary, not text".into())),
    };
    Err(invalid(format!(
        "it is {encoding} without a byte order mark; convert it to UTF-8: iconv -f {encoding} -t UTF-8"
    )))
}

/// Returns an error if the sample is binary, or if most of its lines are in another encoding.
fn check_utf8(sample: &[u8]) -> io::Result<()> {
    let Err(error) = std::str::from_utf8(sample) else { return Ok(()) };
    let is_cut = error.error_len().is_none() && sample.len() as u64 == SAMPLE_BYTES;
    if is_cut {
        return Ok(());
    }
    let is_control = |byte: &&u8| matches!(byte, 0..=7 | 14..=25 | 127);
    if sample.iter().filter(is_control).count() * 32 > sample.len() {
        return Err(invalid("it is binary, or text in another encoding than UTF-8".into()));
    }
    let lines = sample.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let (lines, invalid_lines) = lines.fold((0, 0), |(lines, invalid), line| {
        (lines + 1, invalid + usize::from(std::str::from_utf8(line).is_err()))
    });
    match lines > 1 && invalid_lines * 2 > lines {
        true => Err(invalid(NOT_UTF8.into())),
        false => Ok(()),
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// A reader whose first bytes are known.
pub(super) type Peeked<R> = Chain<Cursor<Vec<u8>>, R>;

/// Reads the first `bytes` of a reader, or all if it has fewer, and returns a reader that begins with them.
pub(super) fn peek<R: Read>(mut reader: R, bytes: u64) -> io::Result<Peeked<R>> {
    let mut head = Vec::new();
    reader.by_ref().take(bytes).read_to_end(&mut head)?;
    Ok(Cursor::new(head).chain(reader))
}

/// Decompresses gzip and zstd. Other data passes unchanged.
fn decompress<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let compressed = Rc::new(Cell::new(0));
    let reader = Counted { reader, count: Rc::clone(&compressed) };
    let reader = BufReader::with_capacity(64 << 10, peek(reader, 4)?);
    let magic = reader.get_ref().get_ref().0.get_ref();
    // zstd's frames may follow frames that are skipped, whose magic numbers are 0x184D2A50 to 0x184D2A5F.
    let is_zstd =
        |magic: &[u8]| matches!(magic, [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18]);
    let (name, data): (_, Box<dyn Read + 'a>) = match &magic[..] {
        [0x1f, 0x8b, ..] => ("gzip", Box::new(Gzip::new(reader))),
        magic if is_zstd(magic) => ("zstd", Box::new(Zstd::new(reader))),
        _ => return Ok(Box::new(reader)),
    };
    Ok(Box::new(Decompressed {
        name,
        data,
        compressed,
        expanded: 0,
        allowance: EXPANSION_ALLOWANCE,
    }))
}

/// A reader that counts the bytes that were read.
struct Counted<R> {
    reader: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.count.set(self.count.get() + read as u64);
        Ok(read)
    }
}

/// Decompressed data, up to the largest expansion.
struct Decompressed<R> {
    name: &'static str,
    data: R,
    /// Number of compressed bytes that were read.
    compressed: Rc<Cell<u64>>,
    /// Number of decompressed bytes.
    expanded: u64,
    allowance: u64,
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.data.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted | io::ErrorKind::Unsupported => error,
            kind => {
                let name = self.name;
                io::Error::new(kind, format!("the {name} data is damaged or cut off: {error}"))
            }
        })?;
        self.expanded += read as u64;
        let limit = self.compressed.get().saturating_mul(MAX_EXPANSION);
        if self.expanded > limit.saturating_add(self.allowance) {
            return Err(invalid(format!(
                "the {} data expands to more than {MAX_EXPANSION} times its size, which no text does; to read it \
                 anyway, decompress it first",
                self.name
            )));
        }
        Ok(read)
    }
}

/// The members of gzip data, one after another. Zeros after the last one are padding, as for gzip itself.
struct Gzip<R> {
    /// The member that is read, or `None` at the end.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Gzip<R> {
    fn new(reader: R) -> Self {
        Self { member: Some(GzDecoder::new(reader)) }
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let Some(mut reader) = self.member.take().map(GzDecoder::into_inner) else { break };
            let mut is_padded = false;
            let next = loop {
                let bytes = reader.fill_buf()?;
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                let next = bytes.get(zeros).copied();
                let is_end = bytes.is_empty();
                is_padded |= zeros > 0;
                reader.consume(zeros);
                if is_end || next.is_some() {
                    break next;
                }
            };
            match next {
                None => {}
                Some(0x1f) if !is_padded => self.member = Some(GzDecoder::new(reader)),
                Some(_) => {
                    let problem = "other data follows the gzip data; remove it";
                    return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
                }
            }
        }
        Ok(0)
    }
}

/// The frames of zstd data, one after another.
struct Zstd<R> {
    reader: R,
    decoder: FrameDecoder,
}

impl<R: BufRead> Zstd<R> {
    fn new(reader: R) -> Self {
        Self { reader, decoder: FrameDecoder::new() }
    }

    /// Begins the next frame that is not to be skipped. Returns false at the end of the data.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.reader.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.reader) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let mut frame = self.reader.by_ref().take(length.into());
                    if io::copy(&mut frame, &mut io::sink())? < length.into() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(FrameDecoderError::WindowSizeTooBig { .. }) => {
                    let problem = "the zstd data needs a window that is too large; \
                                   decompress it first: zstd -d --long=31";
                    return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
                }
                Err(error) => return Err(invalid(error.to_string())),
            }
        }
        Ok(false)
    }

    /// Compares the checksum of a complete frame, if the frame has one.
    fn check(&self) -> io::Result<()> {
        let decoder = &self.decoder;
        match (decoder.get_checksum_from_data(), decoder.get_calculated_checksum()) {
            (Some(stored), Some(computed)) if stored != computed => {
                Err(invalid("the checksum is wrong".into()))
            }
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            if self.decoder.is_finished() {
                self.check()?;
                if !self.next_frame()? {
                    return Ok(0);
                }
            }
            let one = BlockDecodingStrategy::UptoBlocks(1);
            self.decoder
                .decode_blocks(&mut self.reader, one)
                .map_err(|error| invalid(error.to_string()))?;
        }
    }
}

/// UTF-16 as UTF-8. A surrogate without its partner becomes U+FFFD.
struct Utf16<R> {
    reader: R,
    big_endian: bool,
    /// The first byte of a unit whose second byte is not read yet.
    first: Option<u8>,
    /// The first surrogate of a pair.
    high: Option<u16>,
    /// Converted text, of which the bytes up to `taken` were read.
    text: String,
    taken: usize,
}

impl<R: Read> Utf16<R> {
    fn new(reader: R, big_endian: bool) -> Self {
        Self { reader, big_endian, first: None, high: None, text: String::new(), taken: 0 }
    }

    /// Converts the next bytes. Returns false at the end.
    fn convert(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 8 << 10];
        let read = self.reader.read(&mut bytes)?;
        self.text.clear();
        self.taken = 0;
        if read == 0 && self.first.is_some() {
            return Err(invalid("the UTF-16 text ends in the middle of a character".into()));
        }
        let mut units = Vec::with_capacity(read / 2 + 2);
        units.extend(self.high.take());
        for &byte in &bytes[..read] {
            match self.first.take() {
                None => self.first = Some(byte),
                Some(first) if self.big_endian => units.push(u16::from_be_bytes([first, byte])),
                Some(first) => units.push(u16::from_le_bytes([first, byte])),
            }
        }
        if read > 0 {
            self.high = units.pop_if(|unit| (0xd800..0xdc00).contains(unit));
        }
        let characters = char::decode_utf16(units);
        self.text.extend(characters.map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)));
        Ok(read > 0 || !self.text.is_empty())
    }
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.text.len() {
            if !self.convert()? {
                return Ok(0);
            }
        }
        let rest = &self.text.as_bytes()[self.taken..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    fn read(bytes: &[u8]) -> Result<String, String> {
        let mut text = String::new();
        let read = decode(bytes).and_then(|mut reader| reader.read_to_string(&mut text));
        read.map(|_| text).map_err(|error| error.to_string())
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    fn utf16(text: &str, big_endian: bool) -> Vec<u8> {
        let units = std::iter::once(0xfeff).chain(text.encode_utf16());
        let bytes = |unit: u16| if big_endian { unit.to_be_bytes() } else { unit.to_le_bytes() };
        units.flat_map(bytes).collect()
    }

    #[test]
    fn decode_obeys_byte_order_marks() {
        let text = "caf\u{e9} 東京 🦀\r\n".repeat(3000);
        assert_eq!(read(text.as_bytes()).as_ref(), Ok(&text));
        assert_eq!(read(format!("\u{feff}{text}").as_bytes()).as_ref(), Ok(&text));
        for big_endian in [false, true] {
            let bytes = utf16(&text, big_endian);
            assert_eq!(read(&bytes).as_ref(), Ok(&text));
            assert_eq!(read(&gzip(&bytes)).as_ref(), Ok(&text));
        }
        assert_eq!(read(b""), Ok(String::new()));
        assert_eq!(read(&utf16("", false)), Ok(String::new()));
    }

    #[test]
    fn decode_replaces_lone_surrogates_of_utf16() {
        let units = [0xfeff, 0x61, 0xd83d, 0x62, 0xdc00, 0xd83d, 0xde00, 0xd83d];
        let bytes: Vec<u8> = units.into_iter().flat_map(u16::to_le_bytes).collect();
        assert_eq!(read(&bytes).as_deref(), Ok("a\u{fffd}b\u{fffd}\u{1f600}\u{fffd}"));
        let odd = read(&bytes[..bytes.len() - 1]).expect_err("refused");
        assert!(odd.contains("in the middle of a character"), "{odd}");
    }

    #[test]
    fn decode_names_other_encodings_and_files() {
        let without_mark = |big_endian| utf16("{\"text\": \"a leaf\"}\n", big_endian)[2..].to_vec();
        let mut tar = vec![b'x'; 600];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, said) in [
            (without_mark(false), "UTF-16LE without a byte order mark"),
            (without_mark(true), "UTF-16BE without a byte order mark"),
            (b"\xff\xfe\0\0a\0\0\0".to_vec(), "UTF-32"),
            (b"a\0\0\0b\0\0\0".to_vec(), "UTF-32LE without a byte order mark"),
            (b"\0\0\0a\0\0\0b".to_vec(), "UTF-32BE without a byte order mark"),
            (b"7z\xbc\xaf\x27\x1c\0\x04".to_vec(), "7z archive"),
            (b"Rar!\x1a\x07\x01\0".to_vec(), "rar archive"),
            (b"PK\x03\x04rest".to_vec(), "zip archive"),
            (tar, "tar archive"),
            (b"BZh91AY&SY\x8b\xa1".to_vec(), "compressed with bzip2"),
            (b"PAR1\x15\x04\x15".to_vec(), "Parquet"),
            (b"ARROW1\0\0\x01\x02\x03\n".to_vec(), "Arrow file"),
            (b"\xff\xff\xff\xff\x10".to_vec(), "Arrow stream"),
            (b"\xd0\xcf\x11\xe0\xa1".to_vec(), "old Office file"),
            (b"PK\x03\x04\x14\0\x06\0[Content_Types].xml".to_vec(), "an Office file; save it"),
            (b"\x80\x04\x95\x01\n\xff\xfe\x02\x11\xc3\x28\x05text".to_vec(), "binary"),
            (b"caf\xe9\ntea\n\xfcber\n".to_vec(), "iconv -f WINDOWS-1252"),
            (b"\x83e\x83L\n\x83X\x83g\n".to_vec(), "it is not UTF-8"),
            (vec![0; 100], "binary"),
            (gzip(&gzip(b"text")), "compressed twice"),
            (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "git lfs pull"),
        ] {
            let error = read(&bytes).expect_err(said);
            assert!(error.contains(said), "{error}");
        }
        let one_nul = [b"one NUL \0 in a text".repeat(2), b"x".repeat(99)].concat();
        assert!(read(&one_nul).is_ok());
        for text in ["PAR1 is a gene.", "BZhang wrote this.", "BZh9 is a string."] {
            assert_eq!(read(text.as_bytes()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn decode_decompresses_gzip_and_zstd() {
        let text: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
        let (first, second) = text.as_bytes().split_at(70_000);
        for compress in [gzip, zstd] {
            let bytes = compress(text.as_bytes());
            assert_eq!(read(&bytes).as_ref(), Ok(&text));
            assert_eq!(read(&[compress(first), compress(second)].concat()).as_ref(), Ok(&text));
            let cut = read(&bytes[..bytes.len() - 9]).expect_err("cut off");
            assert!(cut.contains("damaged or cut off"), "{cut}");
            let mut damaged = bytes.clone();
            damaged[bytes.len() / 2] ^= 0x55;
            damaged[bytes.len() / 2 + 1] ^= 0x55;
            assert!(read(&damaged).is_err());
            assert_eq!(read(&compress(b"")), Ok(String::new()));
        }
        let skipped = [b"\x52\x2a\x4d\x18\x03\0\0\0abc".to_vec(), zstd(b"text")].concat();
        assert_eq!(read(&skipped).as_deref(), Ok("text"));
        assert!(read(&skipped[..10]).is_err());
        assert!(read(b"\x1f\x8bno gzip").is_err());
        let padded = [gzip(b"te"), gzip(b"xt"), vec![0; 512]].concat();
        assert_eq!(read(&padded).as_deref(), Ok("text"));
        let more = read(&[gzip(b"text"), b"more".to_vec()].concat()).expect_err("refused");
        assert!(more.contains("other data follows the gzip data"), "{more}");
        // A frame with a window of 2 GiB.
        let window = read(b"\x28\xb5\x2f\xfd\x00\xa8\x01\0\0").expect_err("refused");
        assert!(window.ends_with("too large; decompress it first: zstd -d --long=31"), "{window}");
    }

    #[test]
    fn decompressed_limits_the_expansion() {
        let expand = |bytes: &[u8], allowance| {
            let compressed = Rc::new(Cell::new(0));
            let reader = Counted { reader: bytes, count: Rc::clone(&compressed) };
            let data = Gzip::new(BufReader::with_capacity(512, reader));
            let mut limited =
                Decompressed { name: "gzip", data, compressed, expanded: 0, allowance };
            io::copy(&mut limited, &mut io::sink()).map_err(|error| error.to_string())
        };
        let bomb = gzip(&vec![b' '; 4 << 20]);
        let error = expand(&bomb, 64 << 10).expect_err("refused");
        assert!(error.contains("more than 200 times its size"), "{error}");
        assert_eq!(expand(&bomb, 4 << 20), Ok(4 << 20));
    }
}
