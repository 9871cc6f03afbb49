//! Encoding of text, in which added tokens count only in trusted ranges, and decoding of ids.

use std::collections::HashMap;
use std::ops::Range;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use erank_core::CancellationToken;
use tokenizers::normalizer::Range as OffsetRange;
use tokenizers::{
    AddedToken, Decoder, DecoderWrapper, Encoding, Model, NormalizedString, Normalizer, OffsetType,
    PreTokenizedString, PreTokenizer, Token, Tokenizer, TruncationDirection,
};

use super::file::TokenizerFile;
use crate::error::{Cause, LoadError};

/// The largest quotient of the bytes of a text and of its normal form NFC. Three jamo of 9 bytes make a syllable of
/// hangul of 3 bytes.
const NFC_SHRINK: usize = 3;
/// The same for other normalizers and pre-tokenizers, which can remove any number of bytes. The limit bounds the memory
/// that a text takes.
const SHRINK: usize = 16;

/// An estimate of the bytes in a token. Most texts have fewer.
const ESTIMATED_TOKEN_BYTES: usize = 8;

/// A text whose trusted byte ranges are marked. Added tokens count only in trusted ranges.
#[derive(Debug, Clone, Default)]
pub(super) struct MarkedText {
    text: String,
    trusted: Vec<Range<usize>>,
}

impl MarkedText {
    /// Appends trusted text as a range of its own.
    ///
    /// An added token must lie within one range, even if the data between two ranges is empty.
    pub(super) fn push_trusted(&mut self, text: &str) {
        let start = self.text.len();
        self.text.push_str(text);
        self.trusted.push(start..self.text.len());
    }

    /// Appends text in which added tokens do not count.
    pub(super) fn push_data(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Appends another marked text.
    pub(super) fn append(&mut self, other: &Self) {
        let mut done = 0;
        for range in &other.trusted {
            self.push_data(&other.text[done..range.start]);
            self.push_trusted(&other.text[range.clone()]);
            done = range.end;
        }
        self.push_data(&other.text[done..]);
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the trusted range at the end of the text, or an empty text if the text ends with data.
    pub(super) fn trusted_end(&self) -> &str {
        match self.trusted.last() {
            Some(range) if range.end == self.text.len() => &self.text[range.clone()],
            _ => "",
        }
    }
}

/// A validated tokenizer.
pub(super) struct Vocabulary {
    tokenizer: Tokenizer,
    added: HashMap<u32, AddedToken>,
    /// Added tokens that are searched for in the original text.
    verbatim: AddedTokens,
    /// Added tokens that are searched for in the normalized text.
    normalized: AddedTokens,
    size: usize,
    /// Bytes of the longest token.
    pub(super) longest_token: usize,
    has_qwen_pre_tokenizer: bool,
}

impl Vocabulary {
    pub(super) fn from_json(json: &[u8]) -> Result<Self, LoadError> {
        let file = TokenizerFile::from_json(json)?;
        let tokenizer = file.build(json)?;
        let added: HashMap<_, _> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        let unusable =
            |error| LoadError::unparsable("tokenizer.json", "invalid added tokens", error);
        Ok(Self {
            verbatim: AddedTokens::new(&tokenizer, &added, false).map_err(unusable)?,
            normalized: AddedTokens::new(&tokenizer, &added, true).map_err(unusable)?,
            size: file.vocab_size(),
            longest_token: file.longest_token(),
            has_qwen_pre_tokenizer: file.has_qwen_pre_tokenizer(),
            tokenizer,
            added,
        })
    }

    /// Returns one more than the largest token id.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Returns the id of a token, given as it is written in the vocabulary.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Returns the added token with this id, if there is one.
    pub(super) fn added(&self, id: u32) -> Option<&AddedToken> {
        self.added.get(&id)
    }

    /// Encodes a text as the tokenizers crate does, except that added tokens are only found in
    /// trusted ranges.
    pub(super) fn encode(&self, text: &MarkedText) -> Result<Vec<u32>, Cause> {
        let mut pieces = self.split(text)?;
        pieces.tokenize(|piece| self.tokenize(piece))?;
        Ok(pieces.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }

    /// Returns the length of a prefix of `text[data]`, which is data in a longer text. The prefix ends `count` tokens
    /// before the last token that overlaps the data, at a character boundary, and is shorter than the data unless
    /// that is empty.
    pub(super) fn shorten(
        &self,
        text: &MarkedText,
        data: Range<usize>,
        count: usize,
    ) -> Result<usize, Cause> {
        let mut pieces = self.split(text)?;
        pieces.tokenize(|piece| self.tokenize(piece))?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::Byte)?;
        let overlapping = encoding.get_offsets().iter().copied();
        let overlapping: Vec<(usize, usize)> =
            overlapping.filter(|(start, end)| *start < data.end && data.start < *end).collect();
        let kept = overlapping.len().saturating_sub(count);
        // Tokens that share a character have the same offsets, which cover the whole character.
        let end = match (overlapping[..kept].last(), overlapping.get(kept)) {
            (Some(last), Some(removed)) => last.1.min(removed.0),
            _ => data.start,
        };
        let longest = data.end.saturating_sub(1).max(data.start);
        let end = text.as_str().floor_char_boundary(end.clamp(data.start, longest));
        Ok(end.saturating_sub(data.start))
    }

    /// Returns the longest prefix of `text` with at most `max_tokens` tokens, cut at a character
    /// boundary. Added tokens in `text` do not count.
    ///
    /// Reads only a part of a long text, if the first tokens of the part are known to be the first tokens of the text.
    /// Otherwise, it reads as many bytes as `max_tokens` + 1 of the longest tokens can come from. The result differs
    /// from that of the whole text only if a word, without a boundary of the pre-tokenizer, reaches from the last kept
    /// token to there, or if another normalizer than Qwen's removes more than 15 of 16 bytes.
    ///
    /// # Errors
    /// Returns an error if the tokenizer cannot encode the text, or on cancellation.
    pub(super) fn truncate<'a>(
        &self,
        text: &'a str,
        max_tokens: usize,
        cancellation: &CancellationToken,
    ) -> Result<&'a str, Cause> {
        let tokens = max_tokens.saturating_add(1);
        let shrink = if self.has_qwen_pre_tokenizer { NFC_SHRINK } else { SHRINK };
        let bytes = tokens.saturating_mul(self.longest_token).saturating_mul(shrink);
        let bounded = &text[..text.floor_char_boundary(bytes)];
        let mut size = tokens.saturating_mul(ESTIMATED_TOKEN_BYTES);
        while let Some(part) = self.part(bounded, size) {
            if let Some(kept) = self.cut(part, max_tokens, true, cancellation)? {
                return Ok(kept);
            }
            size = part.len().saturating_mul(2);
        }
        Ok(self.cut(bounded, max_tokens, false, cancellation)?.unwrap_or(bounded))
    }

    /// Returns the text of the first `max_tokens` tokens, or `None` if `text` has at most that many. If `text` is a
    /// [part](Self::part) of a longer text, returns `None`, too, if these tokens may not be those of the longer text.
    ///
    /// # Errors
    /// Returns an error if the tokenizer cannot encode the text, or on cancellation.
    pub(super) fn cut<'a>(
        &self,
        text: &'a str,
        max_tokens: usize,
        is_part: bool,
        cancellation: &CancellationToken,
    ) -> Result<Option<&'a str>, Cause> {
        let encoding = self.first_tokens(text, max_tokens.saturating_add(1), cancellation)?;
        let offsets = encoding.get_offsets();
        let reaches_end = offsets.last().is_some_and(|(_, end)| *end == text.len());
        if offsets.len() <= max_tokens || (is_part && reaches_end) {
            return Ok(None);
        }
        Ok(Some(&text[..max_tokens.checked_sub(1).map_or(0, |last| end_of(text, offsets, last))]))
    }

    /// Returns the ends of the first `max_tokens` tokens of `text`, at character boundaries. Added tokens in `text`
    /// do not count. If there are fewer tokens, the last end is the length of the text.
    pub(super) fn token_ends(&self, text: &str, max_tokens: usize) -> Result<Vec<usize>, Cause> {
        // The end of a token depends on the start of the next one.
        let enough = max_tokens.saturating_add(1);
        let encoding = self.first_tokens(text, enough, &CancellationToken::new())?;
        let offsets = encoding.get_offsets();
        Ok((0..offsets.len().min(max_tokens)).map(|index| end_of(text, offsets, index)).collect())
    }

    /// Encodes the beginning of a data text: pieces of the pre-tokenizer until there are `enough` tokens.
    fn first_tokens(
        &self,
        text: &str,
        enough: usize,
        cancellation: &CancellationToken,
    ) -> Result<Encoding, Cause> {
        let mut data = MarkedText::default();
        data.push_data(text);
        let mut pieces = self.split(&data)?;
        let tokenize = |piece: &NormalizedString| match cancellation.is_cancelled() {
            true => Err("the job was cancelled".into()),
            false => self.tokenize(piece),
        };
        pieces.tokenize_with_limit(tokenize, enough, TruncationDirection::Right)?;
        pieces.into_encoding(None, 0, OffsetType::Byte)
    }

    /// Returns a prefix of `text`, with at least `size` bytes, that the pre-tokenizer splits as it splits `text`, but
    /// for the last piece, which may be longer in `text`. Returns `None` if no such prefix is known.
    ///
    /// With Qwen's pre-tokenizer, a prefix has this property if its last character is not white space, and NFC combines
    /// the next character with none before it. Then no match of `QWEN_PATTERN` before the last one depends on what
    /// follows.
    pub(super) fn part<'a>(&self, text: &'a str, size: usize) -> Option<&'a str> {
        if !self.has_qwen_pre_tokenizer || size >= text.len() {
            return None;
        }
        let start = text.ceil_char_boundary(size);
        let ends = text[start..].char_indices().filter(|(_, next)| begins_alone(*next));
        let mut parts = ends.map(|(end, _)| &text[..start + end]);
        parts.find(|part| part.chars().next_back().is_some_and(|last| !last.is_whitespace()))
    }

    /// Returns the bytes that `id` adds to a decoded text. They may begin or end within a character.
    /// Special tokens and ids outside the vocabulary add nothing.
    pub(super) fn decode(&self, id: u32) -> Result<Vec<u8>, Cause> {
        let special =
            |token: &String| self.tokenizer.get_added_vocabulary().is_special_token(token);
        let Some(token) = self.tokenizer.id_to_token(id).filter(|token| !special(token)) else {
            return Ok(Vec::new());
        };
        match self.tokenizer.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) | None => Ok(byte_level::bytes(&token)),
            Some(decoder) => Ok(decoder.decode_chain(vec![token])?.concat().into_bytes()),
        }
    }

    /// Splits a text into added tokens and the pieces that the model encodes one by one.
    ///
    /// The steps are those of `AddedVocabulary::extract_and_normalize` in the tokenizers crate,
    /// followed by the pre-tokenizer.
    fn split(&self, text: &MarkedText) -> Result<PreTokenizedString, Cause> {
        let mut pieces = PreTokenizedString::from(text.as_str());
        pieces.split(|_, piece| self.verbatim.split(piece, &text.trusted))?;
        pieces.split(|_, mut piece| {
            if let Some(normalizer) = self.tokenizer.get_normalizer() {
                normalizer.normalize(&mut piece)?;
            }
            self.normalized.split(piece, &text.trusted)
        })?;
        if let Some(pre_tokenizer) = self.tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        Ok(pieces)
    }

    /// Encodes a piece that contains no added tokens.
    ///
    /// Loading the file has checked that the model cannot produce an added token. This function checks that
    /// again.
    fn tokenize(&self, piece: &NormalizedString) -> Result<Vec<Token>, Cause> {
        let tokens = self.tokenizer.get_model().tokenize(piece.get())?;
        match tokens.iter().find_map(|token| self.added.get(&token.id)) {
            None => Ok(tokens),
            Some(added) => {
                Err(format!("plain text was encoded as the added token {:?}", added.content).into())
            }
        }
    }
}

/// Returns the end of the token at `index`, at a character boundary.
fn end_of(text: &str, offsets: &[(usize, usize)], index: usize) -> usize {
    match offsets.get(index + 1) {
        // Tokens that share a character have the same offsets, which cover the whole character.
        Some(next) => text.floor_char_boundary(offsets[index].1.min(next.0)),
        None => text.len(),
    }
}

/// Returns whether NFC combines a character with none before it. The characters are those of ASCII, kana, Chinese
/// ideographs and the syllables of hangul; there are others.
fn begins_alone(character: char) -> bool {
    character.is_ascii()
        || matches!(character, '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}')
        || matches!(character, '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}')
}

/// A set of added tokens to search for.
struct AddedTokens {
    patterns: AhoCorasick,
    /// Token ids, by index of the pattern.
    ids: Vec<u32>,
}

type Split = (NormalizedString, Option<Vec<Token>>);

impl AddedTokens {
    /// Selects the tokens of `added` whose option `normalized` has the given value.
    fn new(
        tokenizer: &Tokenizer,
        added: &HashMap<u32, AddedToken>,
        normalized: bool,
    ) -> Result<Self, Cause> {
        let (mut texts, mut ids) = (Vec::new(), Vec::new());
        for (id, token) in added.iter().filter(|(_, token)| token.normalized == normalized) {
            let mut text = NormalizedString::from(token.content.as_str());
            if let (true, Some(normalizer)) = (normalized, tokenizer.get_normalizer()) {
                normalizer.normalize(&mut text)?;
            }
            texts.push(text.get().to_owned());
            ids.push(*id);
        }
        let patterns =
            AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts)?;
        Ok(Self { patterns, ids })
    }

    /// Splits `piece` at the added tokens that lie within trusted ranges of the whole text.
    fn split(
        &self,
        piece: NormalizedString,
        trusted: &[Range<usize>],
    ) -> Result<Vec<Split>, Cause> {
        let found = self.find(&piece, trusted);
        if found.is_empty() {
            return Ok(vec![(piece, None)]);
        }
        let cut = |range: Range<usize>| {
            piece
                .slice(OffsetRange::Normalized(range))
                .ok_or("an added token ends within a character")
        };
        let (mut parts, mut done) = (Vec::new(), 0);
        for (range, id) in found {
            parts.push((cut(done..range.start)?, None));
            let token = Token::new(id, String::new(), (0, range.len()));
            done = range.end;
            parts.push((cut(range)?, Some(vec![token])));
        }
        parts.push((cut(done..piece.len())?, None));
        Ok(parts)
    }

    /// Finds the added tokens in trusted ranges. Returns their ranges in the normalized text of `piece`.
    fn find(&self, piece: &NormalizedString, trusted: &[Range<usize>]) -> Vec<(Range<usize>, u32)> {
        let (start, end) = piece.offsets_original();
        let ranges = trusted.iter().map(|range| range.start.max(start)..range.end.min(end));
        ranges
            .filter(|range| range.start < range.end)
            .filter_map(|range| {
                // Excludes characters that normalization combined from trusted text and data.
                piece.convert_offsets(OffsetRange::Original(range.start - start..range.end - start))
            })
            .flat_map(|range| self.patterns.find_iter(Input::new(piece.get()).range(range)))
            .map(|found| (found.range(), self.ids[found.pattern().as_usize()]))
            .collect()
    }
}

/// The mapping between bytes and characters of byte-level BPE.
mod byte_level {
    /// Returns the bytes of a token. If a character of the token does not represent a byte, returns
    /// the token in UTF-8.
    pub(super) fn bytes(token: &str) -> Vec<u8> {
        token.chars().map(byte).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
    }

    /// Returns the byte that a character represents. A printable byte is represented by itself, and the n-th
    /// other byte by the character 256 + n.
    fn byte(character: char) -> Option<u8> {
        match u8::try_from(u32::from(character)) {
            Ok(byte) => is_printable(byte).then_some(byte),
            Err(_) => {
                let index = (u32::from(character) - 256) as usize;
                (0..=u8::MAX).filter(|byte| !is_printable(*byte)).nth(index)
            }
        }
    }

    fn is_printable(byte: u8) -> bool {
        matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
    }
}
