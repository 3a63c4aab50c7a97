package kubelet

import (
	"bufio"
	"bytes"
	"io"
	"os"

	"coracle.dev/coracle/container/logfile"
)

// recordReader reads records from a log file that grows. A record counts once its line is complete.
type recordReader struct {
	r *bufio.Reader
	// begun is the beginning of a line whose end is not written yet.
	begun []byte
	// skipping the rest of a line that is longer than a record may be.
	skipping bool
}

func newRecordReader(r io.Reader) *recordReader {
	return &recordReader{r: bufio.NewReaderSize(r, 64<<10)}
}

// reset goes on with another file. A line that was left incomplete is lost, as it was never finished.
func (d *recordReader) reset(r io.Reader) {
	d.r.Reset(r)
	d.begun = d.begun[:0]
	d.skipping = false
}

// drain writes all complete records up to the present end of the file. Lines that are no
// records are passed over, as upstream does.
func (d *recordReader) drain(out *logWriter) (done bool, err error) {
	for {
		chunk, err := d.r.ReadSlice('\n')
		complete := err == nil
		if err != nil && err != bufio.ErrBufferFull && err != io.EOF {
			return false, err
		}
		line := chunk
		if len(d.begun) > 0 || !complete {
			d.begun = append(d.begun, chunk...)
			line = d.begun
		}
		if len(d.begun) > maxRecord {
			d.begun = d.begun[:0]
			d.skipping = true
		}
		if complete {
			skip := d.skipping
			d.skipping = false
			if !skip {
				if rec, perr := logfile.Parse(line); perr == nil {
					if done, err := out.write(rec); done || err != nil {
						return done, err
					}
				}
			}
			d.begun = d.begun[:0]
		}
		if err == io.EOF {
			return false, nil
		}
	}
}

// rest writes a last record whose line has no end, when nothing will be added any more.
func (d *recordReader) rest(out *logWriter) error {
	if len(d.begun) == 0 || d.skipping {
		return nil
	}
	rec, err := logfile.Parse(d.begun)
	if err != nil {
		return nil
	}
	rec.Partial = true // no "\n" where there was none
	_, err = out.write(rec)
	return err
}

// maxRecord bounds one line of a log file; writers cut output into much smaller pieces.
const maxRecord = 1 << 20

// tailBlock is how much is read at a time from the end.
const tailBlock = 64 << 10

// tailStart finds where the last n lines of output begin. Records that are parts of one line count as
// one. It reads no more of the file than these lines.
func tailStart(f io.ReadSeeker, n int64) (int64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return end, err
	}
	var count int64
	start := end   // of the line found last
	var buf []byte // from position pos on, up to start
	for pos := end; ; {
		// Split what is there into lines, the last first.
		for len(buf) > 0 {
			nl := bytes.LastIndexByte(buf[:len(buf)-1], '\n')
			if nl < 0 && pos > 0 {
				break // its beginning is not read yet
			}
			line := buf[nl+1:]
			if rec, err := logfile.Parse(line); err == nil && (!rec.Partial || start == end) {
				if count == n {
					return start, nil
				}
				count++
			}
			start = pos + int64(nl+1)
			buf = buf[:nl+1]
		}
		if pos == 0 {
			return 0, nil
		}
		size := min(pos, tailBlock)
		pos -= size
		if _, err := f.Seek(pos, io.SeekStart); err != nil {
			return 0, err
		}
		block := make([]byte, size, int(size)+len(buf))
		if _, err := io.ReadFull(f, block); err != nil {
			return 0, err
		}
		buf = append(block, buf...)
	}
}

// nextFile opens the log file that follows the given one after a rotation, nil if that is still the
// last. Rotated files lie beside the present one as "<path>.<time>", in order of their names.
func nextFile(path string, current *os.File) (*os.File, error) {
	have, err := current.Stat()
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil && os.SameFile(info, have) {
		return nil, nil
	}
	// Compressed files are left out: they are older than anything that a reader has open.
	names := append(logfile.Rotated(path), path)
	var after []string // those younger than the current one
	found := false
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			continue // removed meanwhile
		}
		if os.SameFile(info, have) {
			found = true
			after = after[:0]
			continue
		}
		if found || info.ModTime().After(have.ModTime()) || name == path {
			after = append(after, name)
		}
	}
	for _, name := range after {
		if f, err := os.Open(name); err == nil {
			return f, nil
		}
	}
	return nil, nil
}
