package managed

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The words of managedFields.
const (
	fieldsV1     = "FieldsV1"
	bucket       = "ancient-changes"
	unknown      = "unknown"
	beforeApply  = "before-first-apply"
	maxUpdaters  = 10
	operationSet = metav1.ManagedFieldsOperationUpdate
)

// owner is an entry of managedFields: who, how, through what, and which fields.
type owner struct {
	metav1.ManagedFieldsEntry
	fields set
	// kept says that FieldsV1 holds fields.
	kept bool
}

// sameAs tells whether two entries are of one manager. An applier is the same in all versions.
func (o *owner) sameAs(e *metav1.ManagedFieldsEntry) bool {
	return o.Manager == e.Manager && o.Operation == e.Operation && o.Subresource == e.Subresource &&
		(o.Operation == metav1.ManagedFieldsOperationApply || o.APIVersion == e.APIVersion)
}

// owners reads managedFields. Those that come from the store are trusted to be canonical.
func (t *Tracker) owners(entries []metav1.ManagedFieldsEntry, trusted bool) ([]owner, error) {
	out := make([]owner, 0, len(entries)+1)
	for i := range entries {
		e := &entries[i]
		if err := wellFormed(e, i); err != nil {
			return nil, err
		}
		o := owner{ManagedFieldsEntry: *e, kept: true}
		data := []byte("{}")
		if e.FieldsV1 != nil {
			data = e.FieldsV1.GetRawBytes()
		}
		one, err := t.sets.of(data, trusted)
		if err != nil {
			return nil, err
		}
		o.fields, o.FieldsV1 = one.set, one.bytes
		if at := slices.IndexFunc(out, func(have owner) bool { return have.sameAs(e) }); at >= 0 {
			out[at] = o
		} else {
			out = append(out, o)
		}
	}
	return out, nil
}

// wellFormed tells what is wrong with an entry, in upstream's words.
func wellFormed(e *metav1.ManagedFieldsEntry, i int) error {
	switch {
	case e.Operation != metav1.ManagedFieldsOperationApply && e.Operation != metav1.ManagedFieldsOperationUpdate:
		return fmt.Errorf("operation must be `Apply` or `Update`")
	case e.APIVersion == "":
		return fmt.Errorf("apiVersion must not be empty")
	case e.FieldsType == "":
		return fmt.Errorf("missing fieldsType in managed fields entry %d", i)
	case e.FieldsType != fieldsV1:
		return fmt.Errorf("invalid fieldsType %q in managed fields entry %d", e.FieldsType, i)
	}
	return nil
}

// resets tells that a client wants managedFields emptied: an empty list, or one with an empty entry.
func resets(entries []metav1.ManagedFieldsEntry) bool {
	if len(entries) == 0 {
		return entries != nil
	}
	e := &entries[0]
	return len(entries) == 1 && e.Manager == "" && e.Operation == "" && e.APIVersion == "" && e.Time == nil &&
		e.FieldsType == "" && e.FieldsV1 == nil && e.Subresource == ""
}

// unix is a time as entries are ordered by it.
func unix(t *metav1.Time) int64 {
	if t == nil {
		return 0
	}
	return t.Unix()
}

func compareOwners(a, b *metav1.ManagedFieldsEntry) int {
	if c := strings.Compare(string(a.Operation), string(b.Operation)); c != 0 {
		return c
	}
	if x, y := unix(a.Time), unix(b.Time); x != y {
		if x < y {
			return -1
		}
		return 1
	}
	if c := strings.Compare(a.Manager, b.Manager); c != 0 {
		return c
	}
	if c := strings.Compare(a.APIVersion, b.APIVersion); c != 0 {
		return c
	}
	return strings.Compare(a.Subresource, b.Subresource)
}

// write gives the entries as they are stored.
func (t *Tracker) write(all []owner) []metav1.ManagedFieldsEntry {
	if len(all) == 0 {
		return nil
	}
	w := t.walkers.Get().(*walker)
	defer t.walkers.Put(w)
	out := make([]metav1.ManagedFieldsEntry, len(all))
	for i := range all {
		o := &all[i]
		if !o.kept {
			o.FieldsV1 = t.sets.ofSet(o.fields, &w.buf).bytes
		}
		o.FieldsType = fieldsV1
		out[i] = o.ManagedFieldsEntry
	}
	slices.SortFunc(out, func(a, b metav1.ManagedFieldsEntry) int { return compareOwners(&a, &b) })
	return out
}

// limit merges the oldest updaters into one for each version until there are no more than maxUpdaters.
func limit(all []owner) []owner {
	var updaters []int
	for i := range all {
		if all[i].Operation == operationSet {
			updaters = append(updaters, i)
		}
	}
	n := len(updaters)
	if n <= maxUpdaters {
		return all
	}
	slices.SortFunc(updaters, func(i, j int) int {
		a, b := &all[i], &all[j]
		if x, y := unix(a.Time), unix(b.Time); x != y {
			if x < y {
				return -1
			}
			return 1
		}
		return strings.Compare(identifier(&a.ManagedFieldsEntry), identifier(&b.ManagedFieldsEntry))
	})
	first := map[string]int{}
	gone := map[int]bool{}
	for _, i := range updaters {
		if n <= maxUpdaters {
			break
		}
		version := all[i].APIVersion
		into, ok := first[version]
		if !ok {
			first[version] = i
			continue
		}
		if at := slices.IndexFunc(all, func(o owner) bool {
			return o.Manager == bucket && o.Operation == operationSet && o.APIVersion == version && o.Subresource == ""
		}); at >= 0 && !gone[at] {
			into = at
		}
		if into == i {
			continue
		}
		o := &all[into]
		o.Manager, o.Subresource = bucket, ""
		o.fields, o.kept, o.Time = o.fields.union(all[i].fields), false, all[i].Time
		gone[i] = true
		n--
	}
	out := all[:0]
	for i := range all {
		if !gone[i] {
			out = append(out, all[i])
		}
	}
	return out
}

// identifier is what upstream orders managers of the same time by.
func identifier(e *metav1.ManagedFieldsEntry) string {
	b := append([]byte(`{"manager":`), appendString(nil, e.Manager, true)...)
	b = append(append(b, `,"operation":"`...), e.Operation...)
	b = append(append(b, `","apiVersion":"`...), e.APIVersion...)
	b = append(b, '"')
	if e.Subresource != "" {
		b = append(append(b, `,"subresource":`...), appendString(nil, e.Subresource, true)...)
	}
	return string(append(b, '}'))
}

// seconds is a time as entries hold it.
func seconds(t time.Time) *metav1.Time {
	out := metav1.NewTime(t.UTC().Truncate(time.Second))
	return &out
}
