package embedded

import (
	"bytes"
	"os"
	"testing"

	"coracle.dev/coracle/container/logfile"
)

func childMain() {}

// readLog parses a log into the text of its streams.
func readLog(t testing.TB, path string) (stdout, stderr string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	for raw := range bytes.Lines(data) {
		line, err := logfile.Parse(raw)
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		to := &out
		if line.Stream == logfile.Stderr {
			to = &errs
		}
		to.Write(line.Text)
		if !line.Partial {
			to.WriteByte('\n')
		}
	}
	return out.String(), errs.String()
}
