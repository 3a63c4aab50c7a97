package main

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"time"
)

// known is how many conformance tests the release has, by group.
var known = map[string]int{"node": 104, "api-machinery": 100, "storage": 91, "apps": 60, "network": 47, "auth": 27, "cli": 17,
	"scheduling": 11, "instrumentation": 4, "architecture": 1}

// result is the outcome of one test.
type result struct {
	name, group, outcome, why string
	seconds                   float64
}

// junit is the part of ginkgo's report that is read here.
type junit struct {
	Cases []struct {
		Name    string  `xml:"name,attr"`
		Status  string  `xml:"status,attr"`
		Time    float64 `xml:"time,attr"`
		Failure *struct {
			Message string `xml:"message,attr"`
			Text    string `xml:",chardata"`
		} `xml:"failure"`
		Error *struct {
			Message string `xml:"message,attr"`
			Text    string `xml:",chardata"`
		} `xml:"error"`
	} `xml:"testsuite>testcase"`
}

// write makes the results page out of the reports of this run, or of all runs in the working directory, later ones first.
func (r *runner) write(reports string, began time.Time) error {
	pattern := filepath.Join(reports, "*", "junit*.xml")
	if r.merge {
		pattern = filepath.Join(r.work, "reports", "*", "*", "junit*.xml")
	}
	files, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	sort.Strings(files) // directories are named for the time
	all := map[string]result{}
	for _, f := range files {
		if err := read(f, all); err != nil {
			return err
		}
	}
	if len(all) == 0 {
		return fmt.Errorf("no test was run (%s)", pattern)
	}
	text, failed := page(all, r.scope(), began)
	fmt.Print(counts(all))
	if failed > 0 {
		fmt.Printf("%d failed\n", failed)
	}
	return os.WriteFile(r.report, []byte(text), 0o644)
}

// scope says what was asked for.
func (r *runner) scope() string {
	if r.collect {
		return "the last result of each test over several runs, by groups"
	}
	s := "all tests"
	if r.focus != "" {
		s = "tests that match `" + r.focus + "`"
	}
	if r.skip != "" {
		s += " without `" + r.skip + "`"
	}
	if r.merge {
		s += "; the others' results are of earlier runs"
	}
	return s
}

var (
	groupName = regexp.MustCompile(`\[sig-([a-z-]+)\]`)
	labels    = regexp.MustCompile(`\s*\[[A-Z][A-Za-z:,/ -]*\]`)
)

func read(file string, all map[string]result) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var report junit
	if err := xml.Unmarshal(data, &report); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, c := range report.Cases {
		group := groupName.FindStringSubmatch(c.Name)
		if group == nil || !strings.Contains(c.Name, "[Conformance]") || c.Status == "skipped" || c.Status == "pending" {
			continue
		}
		res := result{name: c.Name, group: group[1], outcome: c.Status, seconds: c.Time}
		switch {
		case c.Failure != nil:
			res.why = cmp.Or(c.Failure.Message, c.Failure.Text)
		case c.Error != nil:
			res.why = cmp.Or(c.Error.Message, c.Error.Text)
		}
		all[c.Name] = res
	}
	return nil
}

func sorted(all map[string]result) []result {
	list := make([]result, 0, len(all))
	for _, r := range all {
		list = append(list, r)
	}
	sort.Slice(list, func(i, j int) bool {
		if list[i].group != list[j].group {
			return list[i].group < list[j].group
		}
		return list[i].name < list[j].name
	})
	return list
}

// counts is a table of how many passed, by group.
func counts(all map[string]result) string {
	passed, run := map[string]int{}, map[string]int{}
	for _, r := range all {
		run[r.group]++
		if r.outcome == "passed" {
			passed[r.group]++
		}
	}
	groups := make([]string, 0, len(known))
	for g := range known {
		groups = append(groups, g)
	}
	sort.Strings(groups)
	var b strings.Builder
	b.WriteString("| group | passed | run | in the suite |\n|---|---:|---:|---:|\n")
	var total [3]int
	for _, g := range groups {
		fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", g, passed[g], run[g], known[g])
		total[0], total[1], total[2] = total[0]+passed[g], total[1]+run[g], total[2]+known[g]
	}
	fmt.Fprintf(&b, "| **all** | **%d** | **%d** | **%d** |\n", total[0], total[1], total[2])
	return b.String()
}

// page is the results page, and how many tests did not pass.
func page(all map[string]result, scope string, began time.Time) (string, int) {
	var b strings.Builder
	fmt.Fprintf(&b, "# Conformance\n\nKubernetes' own suite of release %s (`make conformance`), run at %s: %s.\n\n",
		kubernetes, began.UTC().Format("2006-01-02 15:04 MST"), scope)
	b.WriteString(counts(all))
	failed, group := 0, ""
	for _, r := range sorted(all) {
		if r.group != group {
			group = r.group
			fmt.Fprintf(&b, "\n## %s\n\n| test | result | seconds |\n|---|---|---:|\n", group)
		}
		if r.outcome != "passed" {
			failed++
		}
		fmt.Fprintf(&b, "| %s | %s | %.1f |\n", shown(r.name), outcome(r), r.seconds)
	}
	return b.String(), failed
}

// shown is a test's name without ginkgo's node type, its labels and its group.
func shown(name string) string {
	name = strings.TrimPrefix(name, "[It] ")
	name = groupName.ReplaceAllString(name, "")
	name = labels.ReplaceAllString(name, "")
	return strings.ReplaceAll(strings.TrimSpace(name), "|", "\\|")
}

func outcome(r result) string {
	if r.outcome == "passed" {
		return "passed"
	}
	why := strings.Join(strings.Fields(r.why), " ")
	if runes := []rune(why); len(runes) > 200 {
		why = string(runes[:200]) + "..."
	}
	return "**" + r.outcome + "**: " + strings.NewReplacer("|", "\\|", "<", "&lt;").Replace(why)
}
