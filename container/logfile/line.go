// Package logfile writes and reads container logs in the CRI's format: lines of a time, a
// stream, a tag and text, in files that rotate by size. It owns the format and
// the rotation; where files are and how long they stay is its caller's.
package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// Stream is the stream that a line was written to.
type Stream string

// The streams of a process.
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// Line is one record of a log.
type Line struct {
	Time   time.Time
	Stream Stream
	// Partial says that the text goes on in the next line of the same stream.
	Partial bool
	// Text has no newline at its end. It is valid only as long as the buffer that was parsed.
	Text []byte
}

// TimeFormat is how times are written: RFC 3339 with all nine digits.
const TimeFormat = "2006-01-02T15:04:05.000000000Z07:00"

var errFormat = errors.New("logfile: not a log line")

// Append writes a line, with its newline, behind buf.
func (l Line) Append(buf []byte) []byte {
	buf = l.Time.AppendFormat(buf, TimeFormat)
	buf = append(buf, ' ')
	buf = append(buf, l.Stream...)
	if l.Partial {
		buf = append(buf, " P "...)
	} else {
		buf = append(buf, " F "...)
	}
	buf = append(buf, l.Text...)
	return append(buf, '\n')
}

// Parse reads one line, with or without its newline. Tags may be several, joined by ":"; the
// first decides, unknown ones mean a full line.
func Parse(raw []byte) (Line, error) {
	raw = bytes.TrimSuffix(raw, []byte("\n"))
	stamp, rest, ok := bytes.Cut(raw, []byte(" "))
	if !ok {
		return Line{}, fmt.Errorf("%w: no time", errFormat)
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return Line{}, fmt.Errorf("%w: %w", errFormat, err)
	}
	stream, rest, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		return Line{}, fmt.Errorf("%w: no stream", errFormat)
	}
	line := Line{Time: t, Stream: Stream(stream)}
	if line.Stream != Stdout && line.Stream != Stderr {
		return Line{}, fmt.Errorf("%w: unknown stream %q", errFormat, stream)
	}
	tags, text, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		return Line{}, fmt.Errorf("%w: no tag", errFormat)
	}
	tag, _, _ := bytes.Cut(tags, []byte(":"))
	line.Partial = string(tag) == "P"
	line.Text = text
	return line, nil
}
