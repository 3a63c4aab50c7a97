package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"coracle.dev/coracle/dns/corefile"
)

// hosts are addresses that were written down for names.
type hosts struct {
	zones    []string // the names that it is for
	byName   map[string][]netip.Addr
	byAddr   map[netip.Addr][]string
	ttl      uint32
	fallthru through
}

// hostsDirective reads "hosts [FILE [ZONES...]] { ADDRESS NAME...; ttl; no_reverse; fallthrough }". A file is a key of the config map.
func (c *compiler) hostsDirective(b *block, l *corefile.Line, args []string) error {
	h := &hosts{byName: map[string][]netip.Addr{}, byAddr: map[netip.Addr][]string{}, ttl: 3600, zones: []string{"."}}
	reverse := true
	if len(args) > 0 {
		text, ok := c.file(args[0])
		if !ok {
			return l.Errorf("there is no key for the file %s in the config map", args[0])
		}
		for line := range strings.Lines(text) {
			line, _, _ = strings.Cut(line, "#")
			if f := strings.Fields(line); len(f) > 1 {
				h.add(f) // a file's line that is no address is passed over, as in /etc/hosts
			}
		}
	}
	if len(args) > 1 {
		var err error
		if h.zones, err = zones(l, args[1:]); err != nil {
			return err
		}
	}
	for i := range l.Block {
		o := &l.Block[i]
		var err error
		switch o.Words[0] {
		case "ttl":
			h.ttl, err = seconds(o, 65535)
		case "no_reverse":
			reverse = false
		case "reload":
		case "fallthrough":
			h.fallthru, err = fallthroughs(o)
		default:
			if !h.add(o.Words) {
				err = o.Errorf("%q is neither an option of hosts nor an address with names behind it", strings.Join(o.Words, " "))
			}
		}
		if err != nil {
			return err
		}
	}
	if !reverse {
		h.byAddr = nil
	}
	b.hosts = append(b.hosts, h)
	return nil
}

// add takes a line of an address and its names; false if it is none.
func (h *hosts) add(words []string) bool {
	addr, err := netip.ParseAddr(words[0])
	if err != nil || len(words) < 2 {
		return false
	}
	addr = addr.WithZone("").Unmap()
	for _, w := range words[1:] {
		name, err := canonical(w)
		if err != nil {
			return false
		}
		if !slices.Contains(h.byName[name], addr) {
			h.byName[name] = append(h.byName[name], addr)
		}
		h.byAddr[addr] = append(h.byAddr[addr], name)
	}
	return true
}

// ask answers a question; ok is false if the next directive has to.
func (h *hosts) ask(name string, qtype uint16) (a answer, ok bool) {
	lower := strings.ToLower(name)
	if !slices.ContainsFunc(h.zones, func(z string) bool { return dns.IsSubDomain(z, lower) }) {
		return a, false
	}
	if qtype == dns.TypePTR {
		if ip, valid := fromArpa(lower); valid {
			for _, target := range h.byAddr[ip.Unmap()] {
				a.exists = true
				a.records = append(a.records, &dns.PTR{Hdr: header(name, dns.TypePTR, h.ttl), Ptr: target})
			}
		}
		return a, a.exists
	}
	for _, ip := range h.byName[lower] {
		a.exists = true
		if rr := address(name, ip, qtype, h.ttl); rr != nil {
			a.records = append(a.records, rr)
		}
	}
	// Without fallthrough, hosts speaks for its zones alone if it was given some.
	return a, a.exists || !h.fallthru.has(lower) && h.zones[0] != "."
}
