package expression

import (
	"runtime"
	"strings"
	"testing"
)

func TestMem(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	h0 := heap()
	Base(true)
	h1 := heap()
	t.Logf("base: %d KB", (h1-h0)/1024)
	var c Compiler
	e := c.Compile("object.spec.replicas <= 5", Bool, Options{Authorizer: true, Stored: true})
	h2 := heap()
	t.Logf("first: %d KB", (h2-h1)/1024)
	var keep []*Expression
	for i := 0; i < 10; i++ {
		keep = append(keep, c.Compile("object.spec.replicas <= 5"+strings.Repeat("0", i+1), Bool, Options{Authorizer: true, Stored: true}))
	}
	h3 := heap()
	t.Logf("each: %d KB", (h3-h2)/10240)
	var cs []*Compiler
	for i := 0; i < 10; i++ {
		d := &Compiler{}
		d.Variable("x", "1", Options{Authorizer: true, Stored: true})
		keep = append(keep, d.Compile("variables.x == 1", Bool, Options{Authorizer: true, Stored: true}))
		cs = append(cs, d)
	}
	h4 := heap()
	t.Logf("with variables: %d KB", (h4-h3)/10240)
	runtime.KeepAlive(cs)
	runtime.KeepAlive(keep)
	runtime.KeepAlive(e)
	keep, cs, e = nil, nil, nil
	h5 := heap()
	t.Logf("dropped: %d KB interned %d", int(h5-h1)/1024, Interned())
}

func BenchmarkCompile(b *testing.B) {
	var c Compiler
	c.Compile("true", Bool, Options{})
	env, _ := environmentOf(Options{})
	b.ReportAllocs()
	for b.Loop() {
		compile(env, "object.spec.replicas <= 5", Bool)
	}
}

func BenchmarkVariables(b *testing.B) {
	var k Compiler
	e := k.Compile("true", Bool, Options{})
	b.ReportAllocs()
	for b.Loop() {
		var c Compiler
		c.Variable("x", "1", Options{})
	}
	runtime.KeepAlive(e)
}
