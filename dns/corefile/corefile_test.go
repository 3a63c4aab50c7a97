package corefile

import (
	"fmt"
	"strings"
	"testing"
)

func show(lines []Line, indent string) string {
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, "%s%s:%d %q", indent, l.File, l.Number, l.Words)
		if l.Block != nil {
			b.WriteString(" {\n" + show(l.Block, indent+"  ") + indent + "}")
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestParse(t *testing.T) {
	imports := func(pattern string) []Text {
		switch pattern {
		case "*.server":
			return []Text{{"a.server", "example.org {\n  whoami\n}\n"}}
		case "*.override":
			return []Text{{"a.override", "log\nrewrite name a b"}, {"b.override", "errors"}}
		case "bad":
			return []Text{{"bad", "log }"}}
		}
		return nil
	}
	for _, test := range []struct{ text, want string }{
		{".:53 {\n errors # not this\n  hosts {\n  10.0.0.1 \"a b\"\n fallthrough\n }\n}", `C:1 [".:53"] {
  C:2 ["errors"]
  C:3 ["hosts"] {
    C:4 ["10.0.0.1" "a b"]
    C:5 ["fallthrough"]
  }
}
`},
		{"(s) {\n log\n}\na.org,\nb.org {\n import s\n import *.override\n}\nimport *.server\nimport *.none", `C:4 ["a.org," "b.org"] {
  C:2 ["log"]
  a.override:1 ["log"]
  a.override:2 ["rewrite" "name" "a" "b"]
  b.override:1 ["errors"]
}
a.server:1 ["example.org"] {
  a.server:2 ["whoami"]
}
`},
		{". {\n", "C:2: a block has no closing brace"},
		{"}", "C:1: a closing brace without an opening one"},
		{". {\n} x", `C:2: "x" behind a closing brace`},
		{". {\nimport bad\n}", "bad:1: a closing brace without an opening one"},
		{". {\nimport nothing\n}", `C:2: nothing is named "nothing"`},
		{"\"a", "C:1: a quotation has no end"},
		{strings.Repeat("a {\n", 50), "C:0: nested more than 16 deep"},
	} {
		lines, err := Parse(Text{"C", test.text}, imports)
		got := show(lines, "")
		if err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%q:\n%s\nwant\n%s", test.text, got, test.want)
		}
	}
}

// FuzzParse holds that no text makes the parser panic, run for ever, or give lines without words.
func FuzzParse(f *testing.F) {
	f.Add(". {\n forward . 1.1.1.1 {\n policy random\n}\n}", "log")
	f.Add("(a) {\nimport a\n}\nb {\nimport a\n}", "import x*")
	f.Fuzz(func(t *testing.T, text, imported string) {
		lines, err := Parse(Text{"C", text}, func(string) []Text { return []Text{{"I", imported}} })
		if err != nil {
			return
		}
		var check func([]Line)
		check = func(lines []Line) {
			for _, l := range lines {
				if len(l.Words) == 0 || l.Number < 1 {
					t.Errorf("%+v", l)
				}
				check(l.Block)
			}
		}
		check(lines)
	})
}
