package job

import "testing"

func TestIndexes(t *testing.T) {
	for _, c := range []struct {
		text  string
		limit int
		want  string
		total int
	}{
		{"", 10, "", 0},
		{"3", 10, "3", 1},
		{"1,2", 10, "1,2", 2},
		{"1,2,3", 10, "1-3", 3},
		{"5-7,1,3-4", 10, "1,3-7", 6},
		{"0-99", 5, "0-4", 5},
		{"7", 5, "", 0},
		{"x,2,4-3", 5, "2", 1},
	} {
		set := parseIndexes(c.text, c.limit)
		if got := set.String(); got != c.want || set.total() != c.total {
			t.Errorf("%q below %d: %q (%d), want %q (%d)", c.text, c.limit, got, set.total(), c.want, c.total)
		}
	}
	set := parseIndexes("1-3,7", 10).with([]int{4, 0, 7, 9})
	if set.String() != "0-4,7,9" || !set.has(4) || set.has(5) || set.has(8) || !set.has(9) || set.has(10) {
		t.Errorf("set %q", set)
	}
}
