package job

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// indexes is a set of completion indexes, as ranges in order that do not touch.
type indexes []indexRange

type indexRange struct{ first, last int }

// parseIndexes reads the form "1,3-5" of the API. What cannot be read, and what is not below limit, is left out.
func parseIndexes(text string, limit int) indexes {
	var set indexes
	if text == "" {
		return nil
	}
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		last := first
		if err == nil && isRange {
			last, err = strconv.Atoi(to)
		}
		if err != nil || first >= limit || last < first {
			continue
		}
		set = append(set, indexRange{first, min(last, limit-1)})
	}
	return set.normal()
}

// normal orders ranges and joins those that touch.
func (s indexes) normal() indexes {
	slices.SortFunc(s, func(a, b indexRange) int { return a.first - b.first })
	var out indexes
	for _, r := range s {
		if n := len(out); n > 0 && r.first <= out[n-1].last+1 {
			out[n-1].last = max(out[n-1].last, r.last)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// with is the set with more indexes.
func (s indexes) with(more []int) indexes {
	out := slices.Clone(s)
	for _, i := range more {
		out = append(out, indexRange{i, i})
	}
	return out.normal()
}

func (s indexes) has(i int) bool {
	_, found := slices.BinarySearchFunc(s, i, func(r indexRange, i int) int {
		switch {
		case r.last < i:
			return -1
		case r.first > i:
			return 1
		}
		return 0
	})
	return found
}

func (s indexes) total() (n int) {
	for _, r := range s {
		n += r.last - r.first + 1
	}
	return n
}

// String is the form of the API: two indexes in a row are listed, more are a range.
func (s indexes) String() string {
	var parts []string
	for _, r := range s {
		switch r.last - r.first {
		case 0:
			parts = append(parts, strconv.Itoa(r.first))
		case 1:
			parts = append(parts, strconv.Itoa(r.first), strconv.Itoa(r.last))
		default:
			parts = append(parts, fmt.Sprintf("%d-%d", r.first, r.last))
		}
	}
	return strings.Join(parts, ",")
}

// indexOf is the completion index of a pod, -1 if it has none.
func indexOf(pod *corev1.Pod) int {
	n, err := strconv.Atoi(pod.Annotations[batchv1.JobCompletionIndexAnnotation])
	if err != nil || n < 0 {
		return -1
	}
	return n
}
