package dns

import (
	"encoding/binary"
	"math/rand/v2"
	"time"

	"github.com/miekg/dns"
)

// question is a query in the form that nearly all have: one question of class IN, no options beyond the size of a datagram.
type question struct {
	name  []byte // as on the wire, in lower case; in the scratch space of the reader
	end   int    // where the question ends in the query
	qtype uint16
	edns  bool
	size  int // the most bytes that the client takes
}

const headerSize = 12

// parse reads a query; ok is false for those that are not of the plain form, which are not wrong for that.
func parse(msg, scratch []byte) (q question, ok bool) {
	// No response, opcode QUERY, not truncated, checking not disabled; one question and at most one additional record.
	if len(msg) < headerSize+5 || msg[2]&0xfa != 0 || msg[3]&0x10 != 0 || binary.BigEndian.Uint32(msg[4:]) != 1<<16 ||
		msg[8] != 0 || msg[9] != 0 || msg[10] != 0 || msg[11] > 1 {
		return q, false
	}
	at := headerSize
	for {
		n := int(msg[at])
		if n == 0 {
			break
		}
		if n > 63 || at+1+n >= len(msg) || at+n-headerSize > 253 {
			return q, false
		}
		at += 1 + n
	}
	at++
	if at+4 > len(msg) || msg[at+2] != 0 || msg[at+3] != dns.ClassINET {
		return q, false
	}
	q.name = scratch[:at-headerSize]
	for i, c := range msg[headerSize:at] {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A' // lengths of labels are below 'A'
		}
		q.name[i] = c
	}
	q.qtype, q.end, q.size = binary.BigEndian.Uint16(msg[at:]), at+4, dns.MinMsgSize
	if msg[11] == 0 {
		return q, q.end == len(msg)
	}
	opt := msg[q.end:]
	if len(opt) != optSize || opt[0] != 0 || binary.BigEndian.Uint16(opt[1:]) != dns.TypeOPT || binary.BigEndian.Uint32(opt[5:]) != 0 || opt[9] != 0 || opt[10] != 0 {
		return q, false
	}
	q.edns, q.size = true, max(int(binary.BigEndian.Uint16(opt[3:])), dns.MinMsgSize)
	return q, true
}

const (
	optSize = 11
	// datagramSize is what answers over UDP say that they take (https://www.dnsflagday.net/2020/).
	datagramSize = 1232
)

// option is the OPT record of answers.
var option = [optSize]byte{2: byte(dns.TypeOPT), 3: datagramSize >> 8, 4: datagramSize & 0xff}

// packed is an answer as it goes out, but for what differs from query to query.
type packed struct {
	wire  []byte
	epoch uint64 // of the cluster's names and of the configuration
	// from and until are when it was made and for how long it holds, in Unix seconds; until is 0 where the epoch alone says so.
	from, until int64
	ttls        []int // where lifetimes stand, which grow shorter if until is set
	// first, size and count say where addresses stand that every answer has in another order.
	first, size, count int
	// search says that a pod of the name's own namespace gets another answer: that of its search path.
	search bool
}

// pack makes the form of an answer that is kept.
func pack(m *dns.Msg, life time.Duration, epoch uint64, now time.Time) (*packed, error) {
	m.Id, m.RecursionDesired, m.Compress = 0, false, true
	wire, err := m.Pack()
	if err != nil {
		return nil, err
	}
	p := &packed{wire: wire, epoch: epoch, from: now.Unix()}
	if life < forever {
		p.until = p.from + int64(life/time.Second)
	}
	p.walk(m)
	return p, nil
}

// walk finds lifetimes and addresses in an answer that was packed a moment ago.
func (p *packed) walk(m *dns.Msg) {
	at := skipName(p.wire, headerSize) + 4
	uniform := len(m.Answer) > 1
	for i := range len(m.Answer) + len(m.Ns) + len(m.Extra) {
		start := at
		at = skipName(p.wire, at)
		kind := binary.BigEndian.Uint16(p.wire[at:])
		if p.until != 0 {
			p.ttls = append(p.ttls, at+4)
		}
		at += 10 + int(binary.BigEndian.Uint16(p.wire[at+8:]))
		if i < len(m.Answer) {
			if i == 0 {
				p.first, p.size = start, at-start
			}
			uniform = uniform && (kind == dns.TypeA || kind == dns.TypeAAAA) && at-start == p.size
		}
	}
	if uniform {
		p.count = len(m.Answer)
	}
}

// skipName gives the end of the name at an offset.
func skipName(wire []byte, at int) int {
	for wire[at] != 0 {
		if wire[at] >= 0xc0 {
			return at + 2
		}
		at += 1 + int(wire[at])
	}
	return at + 1
}

// holds says that an answer is still good.
func (p *packed) holds(epoch uint64, now int64) bool {
	return p.epoch == epoch && (p.until == 0 || now < p.until)
}

// appendTo writes the answer to a query, in the case in which the client wrote the name; nil if it is longer than the client takes.
func (p *packed) appendTo(out, query []byte, q *question, now int64) []byte {
	out = append(out, p.wire...)
	copy(out, query[:2])
	out[2] |= query[2] & 1           // recursion desired
	out[3] &= query[3] | ^byte(1<<5) // authentic data, for those who ask
	copy(out[headerSize:q.end], query[headerSize:q.end])
	if age := uint32(now - p.from); age > 0 {
		for _, at := range p.ttls {
			ttl := binary.BigEndian.Uint32(out[at:])
			binary.BigEndian.PutUint32(out[at:], ttl-min(ttl, age))
		}
	}
	var spare [28]byte
	for i := p.count - 1; i > 0; i-- {
		if j := rand.IntN(i + 1); j != i {
			a, b := out[p.first+i*p.size:][:p.size], out[p.first+j*p.size:][:p.size]
			copy(spare[:], a)
			copy(a, b)
			copy(b, spare[:p.size])
		}
	}
	if q.edns {
		out = append(out, option[:]...)
		out[11]++
		if out[11] == 0 {
			out[10]++
		}
	}
	if len(out) > q.size {
		return nil
	}
	return out
}
