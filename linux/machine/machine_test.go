package machine

import (
	"reflect"
	"testing"
	"time"
)

func TestRead(t *testing.T) {
	a, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	if a.CPUNanos == 0 || a.MemoryBytes < a.AvailableBytes || a.AvailableBytes == 0 || a.Tasks < 1 || a.MaxPID < 1000 || !a.Booted.Before(a.Time) {
		t.Fatalf("%+v", a)
	}
	if _, err := Interfaces(""); err != nil {
		t.Fatal(err)
	}
	if _, err := Interfaces("/proc/self/ns/none"); err == nil {
		t.Fatal("a namespace that does not exist has interfaces")
	}
}

func TestParse(t *testing.T) {
	var u Usage
	if err := u.cpu([]byte("cpu  100 10 50 9999 7 2 3 1 40 40\ncpu0 1 1 1 1 1 1 1 1 1 1\nbtime 1700000000\n")); err != nil {
		t.Fatal(err)
	}
	if u.CPUNanos != uint64(166*10*time.Millisecond) || u.Booted.Unix() != 1700000000 {
		t.Errorf("%+v", u)
	}
	if err := u.memory([]byte("MemTotal:  100 kB\nMemAvailable: 40 kB\nHugePages_Total: 0\nSwapTotal: 8 kB\n")); err != nil || u.MemoryBytes != 100<<10 || u.AvailableBytes != 40<<10 || u.SwapBytes != 8<<10 {
		t.Errorf("%+v %v", u, err)
	}
	if err := u.tasks([]byte("0.1 0.2 0.3 2/345 999\n")); err != nil || u.Tasks != 345 {
		t.Errorf("%+v %v", u, err)
	}
	for name, err := range map[string]error{
		"stat": u.cpu([]byte("intr 1\n")), "stat number": u.cpu([]byte("cpu a b c d e f g h\n")),
		"meminfo": new(Usage).memory(nil), "loadavg": u.tasks([]byte("0.1")),
	} {
		if err == nil {
			t.Errorf("%s: damage was not seen", name)
		}
	}
	got, err := interfaces([]byte("Inter-|   Receive\n face |bytes\n    lo: 1 1 1 1 1 1 1 1 1 1 1 1\n  eth0: 10 2 3 4 5 6 7 8 90 10 11 12 13 14 15 16\n"))
	if want := []Interface{{"eth0", 10, 3, 90, 11}}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v", got, err)
	}
}
