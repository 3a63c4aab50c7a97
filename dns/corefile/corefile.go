// Package corefile reads the language of CoreDNS's configuration (https://coredns.io/manual/configuration/) into lines and blocks:
// words, quoting, comments, snippets and imports.
//
// It owns the grammar and nothing else: what a directive means is for its reader, and it opens no file.
package corefile

import (
	"fmt"
	"strings"
)

// Line is a directive: its words, and the lines in its braces. A server block is a line whose words are its zones.
type Line struct {
	Words []string
	// File and Number say where it stands; Number counts from 1.
	File   string
	Number int
	// Block is what stands in braces behind it, nil if there are none.
	Block []Line
}

// Errorf is an error about a line.
func (l *Line) Errorf(format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s", l.File, l.Number, fmt.Sprintf(format, args...))
}

// Limits that no configuration of people reaches.
const (
	maxDepth = 16     // of braces
	maxLines = 20_000 // after imports
)

// Import gives the texts that an import's argument stands for, by name. None is no error if it is a pattern.
type Import func(pattern string) []Text

// Text is a named configuration text.
type Text struct{ Name, Data string }

// Parse reads a text. imports may be nil.
func Parse(text Text, imports Import) ([]Line, error) {
	p := &parser{imports: imports, snippets: map[string][]Line{}}
	return p.file(text, 0)
}

type parser struct {
	imports  Import
	snippets map[string][]Line
	lines    int
}

// file reads a text and takes its snippets out.
func (p *parser) file(text Text, depth int) ([]Line, error) {
	tokens, err := lex(text)
	if err != nil {
		return nil, err
	}
	in := &input{tokens: tokens, file: text.Name}
	lines, err := p.block(in, depth, false)
	if err != nil {
		return nil, err
	}
	return lines, nil
}

// token is a word, or the end of a line.
type token struct {
	text   string
	line   int
	quoted bool
	end    bool
}

// lex cuts a text into words.
func lex(text Text) ([]token, error) {
	var out []token
	line := 1
	s := text.Data
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '\n':
			out = append(out, token{line: line, end: true})
			line++
			i++
		case c == ' ' || c == '\t' || c == '\r':
			i++
		case c == '#':
			for i < len(s) && s[i] != '\n' {
				i++
			}
		case c == '"':
			start := line
			var word strings.Builder
			for i++; ; i++ {
				if i >= len(s) {
					return nil, fmt.Errorf("%s:%d: a quotation has no end", text.Name, start)
				}
				if s[i] == '\\' && i+1 < len(s) && s[i+1] == '"' {
					i++
				} else if s[i] == '"' {
					i++
					break
				} else if s[i] == '\n' {
					line++
				}
				word.WriteByte(s[i])
			}
			out = append(out, token{text: word.String(), line: start, quoted: true})
		default:
			start := i
			for i < len(s) && !strings.ContainsRune(" \t\r\n", rune(s[i])) {
				i++
			}
			out = append(out, token{text: s[start:i], line: line})
		}
	}
	return append(out, token{line: line, end: true}), nil
}

type input struct {
	tokens []token
	at     int
	file   string
}

func (t *token) is(brace string) bool { return !t.quoted && t.text == brace }

// block reads lines up to a closing brace, if inside, or the end.
func (p *parser) block(in *input, depth int, inside bool) ([]Line, error) {
	var out []Line
	line := Line{File: in.file}
	finish := func() error {
		if len(line.Words) == 0 {
			return nil
		}
		done, err := p.finish(&line, depth, inside)
		out = append(out, done...)
		if p.lines += len(done); err == nil && p.lines > maxLines {
			err = line.Errorf("more than %d lines", maxLines)
		}
		line = Line{File: in.file}
		return err
	}
	if depth > maxDepth {
		return nil, line.Errorf("nested more than %d deep", maxDepth)
	}
	for in.at < len(in.tokens) {
		t := &in.tokens[in.at]
		in.at++
		switch {
		case t.end:
			// The zones of a server block may go on behind a comma.
			if n := len(line.Words); !inside && n > 0 && strings.HasSuffix(line.Words[n-1], ",") {
				continue
			}
			if err := finish(); err != nil {
				return nil, err
			}
		case t.is("{"):
			line.Number = max(line.Number, 1)
			if len(line.Words) == 0 && inside {
				line.Number = t.line
				return nil, line.Errorf("a block without a name")
			}
			if len(line.Words) == 0 {
				line.Words, line.Number = []string{"."}, t.line
			}
			inner, err := p.block(in, depth+1, true)
			if err != nil {
				return nil, err
			}
			if line.Block = inner; inner == nil {
				line.Block = []Line{}
			}
			if in.at < len(in.tokens) && !in.tokens[in.at].end {
				line.Number = in.tokens[in.at].line
				return nil, line.Errorf("%q behind a closing brace", in.tokens[in.at].text)
			}
			if err := finish(); err != nil {
				return nil, err
			}
		case t.is("}"):
			if !inside {
				line.Number = t.line
				return nil, line.Errorf("a closing brace without an opening one")
			}
			return out, finish()
		default:
			if len(line.Words) == 0 {
				line.Number = t.line
			}
			line.Words = append(line.Words, t.text)
		}
	}
	if inside {
		line.Number = in.tokens[len(in.tokens)-1].line
		return nil, line.Errorf("a block has no closing brace")
	}
	return out, finish()
}

// finish turns a complete line into what it stands for: itself, nothing (a snippet), or what it imports.
func (p *parser) finish(l *Line, depth int, inside bool) ([]Line, error) {
	first := l.Words[0]
	if !inside && len(l.Words) == 1 && strings.HasPrefix(first, "(") && strings.HasSuffix(first, ")") {
		p.snippets[strings.Trim(first, "()")] = l.Block
		return nil, nil
	}
	if first != "import" {
		return []Line{*l}, nil
	}
	if len(l.Words) != 2 || l.Block != nil {
		return nil, l.Errorf("import takes one name, pattern or snippet")
	}
	name := l.Words[1]
	if lines, ok := p.snippets[name]; ok {
		return lines, nil
	}
	var texts []Text
	if p.imports != nil {
		texts = p.imports(name)
	}
	if len(texts) == 0 && !strings.ContainsAny(name, "*?[") {
		return nil, l.Errorf("nothing is named %q", name)
	}
	var out []Line
	for _, t := range texts {
		tokens, err := lex(t)
		if err != nil {
			return nil, err
		}
		in := &input{tokens: tokens, file: t.Name}
		if inside {
			// The lines of a server block: the brace that ends them is this one.
			in.tokens = append(in.tokens, token{text: "}", line: tokens[len(tokens)-1].line})
		}
		lines, err := p.block(in, depth+1, inside)
		if err != nil {
			return nil, err
		}
		if in.at < len(in.tokens) {
			l.File, l.Number = t.Name, in.tokens[in.at].line
			return nil, l.Errorf("a closing brace without an opening one")
		}
		out = append(out, lines...)
	}
	return out, nil
}
