// Package selector matches label selectors against many sets of labels.
//
// It owns one short cut and nothing else: most selectors want some label to have one value, and most objects do not have it.
package selector

import (
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// Matcher gives a function that tells what sel.Matches tells, several times as fast for labels that it does not match. It is safe for
// concurrent use.
func Matcher(sel labels.Selector) func(map[string]string) bool {
	key, value, ok := Pair(sel)
	if !ok {
		return func(l map[string]string) bool { return sel.Matches(labels.Set(l)) }
	}
	return func(l map[string]string) bool {
		has, ok := l[key]
		return ok && has == value && sel.Matches(labels.Set(l))
	}
}

// Pair is a label that everything has that the selector matches; ok is false if it names none.
func Pair(sel labels.Selector) (key, value string, ok bool) {
	requirements, _ := sel.Requirements()
	for _, r := range requirements {
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			if values := r.ValuesUnsorted(); len(values) == 1 {
				return r.Key(), values[0], true
			}
		}
	}
	return "", "", false
}
