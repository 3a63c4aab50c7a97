package filter

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/google/nftables"
)

// layout is the name of an empty chain that says how the fixed part of the table is made. A table of another layout is not taken
// over but made anew: who changes that part, changes the number.
const layout = "layout_2"

// inventory is what an earlier start left.
type inventory struct {
	chains, refusals []string // names in the kernel
	sets             []*nftables.Set
	elements         map[string][]nftables.SetElement // of the fixed sets
}

// replace prepares for all to be made anew: beside what is there, which is returned, or, where there is nothing that fits, in a new
// table.
func (f *Table) replace() (*inventory, error) {
	old, err := f.take()
	if err != nil {
		return nil, err
	}
	f.forget()
	if old == nil {
		f.conn.AddTable(f.table) // so that the deletion finds one
		f.conn.DelTable(f.table)
		f.conn.AddTable(f.table)
		f.skeleton()
		return nil, nil
	}
	for _, v6 := range []bool{false, true} {
		for _, set := range fixedSets(v6) {
			set.Table = f.table
			f.fixed[set.Name] = set
		}
	}
	return old, nil
}

// take reads what is in the kernel, nil if there is no table of our layout, and chooses the epoch behind it.
func (f *Table) take() (*inventory, error) {
	chains, err := f.conn.ListChainsOfTableFamily(f.table.Family)
	if err != nil {
		return nil, fmt.Errorf("nftables: read table %s: %w", f.table.Name, err)
	}
	old, fits := &inventory{elements: map[string][]nftables.SetElement{}}, false
	for _, c := range chains {
		if c.Table.Name != f.table.Name {
			continue
		}
		fits = fits || c.Name == layout
		kind, epoch, _ := strings.Cut(c.Name, "_")
		n, err := strconv.Atoi(epoch)
		if err != nil || kind == "layout" {
			continue // of the fixed part
		}
		f.epoch = max(f.epoch, n)
		if strings.HasPrefix(kind, "d") {
			old.refusals = append(old.refusals, c.Name)
		} else {
			old.chains = append(old.chains, c.Name)
		}
	}
	f.epoch++
	if !fits {
		return nil, nil
	}
	sets, err := f.conn.GetSets(f.table)
	if err != nil {
		return nil, fmt.Errorf("nftables: read table %s: %w", f.table.Name, err)
	}
	for _, set := range sets {
		switch {
		case strings.Contains(set.Name, "_"):
			old.sets = append(old.sets, set)
		case !strings.HasPrefix(set.Name, "cut"):
			if old.elements[set.Name], err = f.conn.GetSetElements(set); err != nil {
				return nil, fmt.Errorf("nftables: read set %s of table %s: %w", set.Name, f.table.Name, err)
			}
		}
	}
	return old, nil
}

// unbind takes every address out of the fixed sets; what is wanted is put in again by the same transaction.
func (f *Table) unbind(old *inventory) {
	for name, elements := range old.elements {
		keys := make([]nftables.SetElement, len(elements))
		for i := range elements {
			keys[i].Key = elements[i].Key
		}
		set := f.fixed[name]
		eachPart(keys, func(part []nftables.SetElement) error { return f.conn.SetDeleteElements(set, part) })
	}
}

// clean removes what nobody is bound to any more.
func (f *Table) clean(old *inventory) error {
	for _, name := range old.chains {
		f.conn.FlushChain(&nftables.Chain{Name: name, Table: f.table})
	}
	for _, set := range old.sets {
		f.conn.DelSet(set)
	}
	for _, name := range old.chains {
		f.conn.DelChain(&nftables.Chain{Name: name, Table: f.table})
	}
	for _, name := range old.refusals {
		f.dropRefusal(name)
	}
	if err := f.conn.Flush(); err != nil {
		return fmt.Errorf("nftables: clean table %s: %w", f.table.Name, err)
	}
	return nil
}
