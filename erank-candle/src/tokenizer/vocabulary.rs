//! Text to token ids, with control tokens in trusted text alone; ids back to text.

use std::collections::HashMap;
use std::ops::Range;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use tokenizers::normalizer::Range as OffsetRange;
use tokenizers::{
    AddedToken, Decoder, DecoderWrapper, Model, NormalizedString, Normalizer, OffsetType,
    PreTokenizedString, PreTokenizer, Token, Tokenizer, TruncationDirection,
};

use super::file::TokenizerFile;
use crate::error::{Cause, LoadError};

/// More than most texts have in a token.
const USUAL_TOKEN_BYTES: usize = 8;

/// Text with the byte ranges in which control tokens count.
#[derive(Debug, Clone, Default)]
pub(super) struct MarkedText {
    text: String,
    trusted: Vec<Range<usize>>,
}

impl MarkedText {
    /// A control token never lies in two runs, even if the data between them is empty.
    pub(super) fn push_trusted(&mut self, text: &str) {
        let start = self.text.len();
        self.text.push_str(text);
        self.trusted.push(start..self.text.len());
    }

    pub(super) fn push_data(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// These marked texts, one after the other.
    pub(super) fn append(&mut self, other: &Self) {
        let mut done = 0;
        for run in &other.trusted {
            self.push_data(&other.text[done..run.start]);
            self.push_trusted(&other.text[run.clone()]);
            done = run.end;
        }
        self.push_data(&other.text[done..]);
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The trusted text at the end, up to the last data.
    pub(super) fn trusted_end(&self) -> &str {
        match self.trusted.last() {
            Some(run) if run.end == self.text.len() => &self.text[run.clone()],
            _ => "",
        }
    }
}

/// A checked tokenizer.
pub(super) struct Vocabulary {
    tokenizer: Tokenizer,
    added: HashMap<u32, AddedToken>,
    /// Added tokens that are looked for in the text as it stands.
    verbatim: AddedTokens,
    /// Added tokens that are looked for in the normalized text.
    normalized: AddedTokens,
    size: usize,
    splits_before_spaces: bool,
}

impl Vocabulary {
    pub(super) fn from_json(json: &[u8]) -> Result<Self, LoadError> {
        let file = TokenizerFile::read(json)?;
        let tokenizer = file.build(json)?;
        let added: HashMap<_, _> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        let unusable = |error| LoadError::unparsable("tokenizer.json", "its added tokens", error);
        Ok(Self {
            verbatim: AddedTokens::new(&tokenizer, &added, false).map_err(unusable)?,
            normalized: AddedTokens::new(&tokenizer, &added, true).map_err(unusable)?,
            size: file.vocab_size(),
            splits_before_spaces: file.is_split_as_qwens(),
            tokenizer,
            added,
        })
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    pub(super) fn added(&self, id: u32) -> Option<&AddedToken> {
        self.added.get(&id)
    }

    /// The ids of `text`: what the tokenizers crate gives for the whole text, but that added
    /// tokens are looked for in the trusted runs alone.
    pub(super) fn encode(&self, text: &MarkedText) -> Result<Vec<u32>, Cause> {
        let mut pieces = self.split(text)?;
        pieces.tokenize(|piece| self.tokenize(piece))?;
        Ok(pieces.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }

    /// The longest beginning of `text`, as data alone, that has at most `max_tokens` tokens and
    /// cuts no character.
    ///
    /// A long text is not read to its end if a part of it has tokens enough.
    pub(super) fn truncate<'a>(&self, text: &'a str, max_tokens: usize) -> Result<&'a str, Cause> {
        let mut size = max_tokens.saturating_add(1).saturating_mul(USUAL_TOKEN_BYTES);
        while let Some(part) = self.independent_beginning(text, size) {
            if let Some(kept) = self.cut(part, max_tokens)? {
                return Ok(kept);
            }
            size = part.len().saturating_mul(2);
        }
        Ok(self.cut(text, max_tokens)?.unwrap_or(text))
    }

    /// The text of the first `max_tokens` tokens; `None` if there are no more than that.
    pub(super) fn cut<'a>(
        &self,
        text: &'a str,
        max_tokens: usize,
    ) -> Result<Option<&'a str>, Cause> {
        let mut data = MarkedText::default();
        data.push_data(text);
        let mut pieces = self.split(&data)?;
        let enough = max_tokens.saturating_add(1);
        let tokenize = |piece: &NormalizedString| self.tokenize(piece);
        pieces.tokenize_with_limit(tokenize, enough, TruncationDirection::Right)?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::Byte)?;
        let offsets = encoding.get_offsets();
        let Some(first_left_out) = offsets.get(max_tokens) else { return Ok(None) };
        // Tokens that share a character both have all of its bytes as their offsets.
        let end = offsets[..max_tokens].last().map_or(0, |last| last.1.min(first_left_out.0));
        Ok(Some(&text[..text.floor_char_boundary(end)]))
    }

    /// A beginning of `text`, of `size` bytes or somewhat more, whose tokens are the first tokens of
    /// the whole text. `None` if there is none, or none that is known to be one.
    ///
    /// With Qwen's pre-tokenization, that is what ends before a space that follows something else
    /// than white space: `QWEN_PATTERN` has no match that goes from the one to the other,
    /// its matches of text before the space are the same if the text ends there, and NFC changes
    /// nothing across a space.
    fn independent_beginning<'a>(&self, text: &'a str, size: usize) -> Option<&'a str> {
        let rest = text.as_bytes().get(size..).filter(|_| self.splits_before_spaces)?;
        let spaces = rest.iter().enumerate().filter(|(_, byte)| **byte == b' ');
        let mut beginnings = spaces.map(|(index, _)| &text[..size + index]);
        beginnings.find(|part| part.chars().next_back().is_some_and(|last| !last.is_whitespace()))
    }

    /// The text that `id` adds to a decoded text, in bytes: it may end within a character. Nothing
    /// for special tokens and for ids without a token.
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

    /// Added tokens and the pieces between them that the model encodes one by one.
    ///
    /// The steps are those of `AddedVocabulary::extract_and_normalize` in the tokenizers crate,
    /// followed by pre-tokenization.
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

    /// The tokens of a piece without added tokens. That the model cannot make any was checked when
    /// it was loaded; this is the second look.
    fn tokenize(&self, piece: &NormalizedString) -> Result<Vec<Token>, Cause> {
        let tokens = self.tokenizer.get_model().tokenize(piece.get())?;
        match tokens.iter().find_map(|token| self.added.get(&token.id)) {
            None => Ok(tokens),
            Some(added) => Err(format!("plain text became the token {:?}", added.content).into()),
        }
    }
}

/// A set of added tokens to look for.
struct AddedTokens {
    patterns: AhoCorasick,
    /// The id of each pattern.
    ids: Vec<u32>,
}

type Split = (NormalizedString, Option<Vec<Token>>);

impl AddedTokens {
    /// Those of `added` that are looked for in normalized text, or those that are not.
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

    /// Cuts `piece` at the tokens that lie within trusted runs of the whole text.
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
            piece.slice(OffsetRange::Normalized(range)).ok_or("an added token cuts a character")
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

    /// The tokens in the trusted runs, as ranges of the piece's normalized text.
    fn find(&self, piece: &NormalizedString, trusted: &[Range<usize>]) -> Vec<(Range<usize>, u32)> {
        let (start, end) = piece.offsets_original();
        let runs = trusted.iter().map(|run| run.start.max(start)..run.end.min(end));
        runs.filter(|run| run.start < run.end)
            .filter_map(|run| {
                // Characters that normalization made of trusted text and data are not in the run.
                piece.convert_offsets(OffsetRange::Original(run.start - start..run.end - start))
            })
            .flat_map(|run| self.patterns.find_iter(Input::new(piece.get()).range(run)))
            .map(|found| (found.range(), self.ids[found.pattern().as_usize()]))
            .collect()
    }
}

/// The characters that byte-level BPE writes bytes as.
mod byte_level {
    /// The bytes that a token stands for: its characters read as bytes or, if one of them is none,
    /// its text.
    pub(super) fn bytes(token: &str) -> Vec<u8> {
        token.chars().map(byte).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
    }

    /// Printable bytes stand for themselves; the n-th of the others is the character 256 + n.
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
