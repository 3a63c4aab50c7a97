package manifest

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

// object is a mapping of a document; the zero object stands for one that is not there, and reads as empty.
type object struct{ *yaml.Node }

// index is where the value of a key stands in Content, or -1.
func (o object) index(key string) int {
	if o.Node == nil || o.Kind != yaml.MappingNode {
		return -1
	}
	for i := 0; i+1 < len(o.Content); i += 2 {
		if o.Content[i].Value == key {
			return i + 1
		}
	}
	return -1
}

// get is the value of a key, nil if there is none or it is null.
func (o object) get(key string) *yaml.Node {
	i := o.index(key)
	if i < 0 || o.Content[i].Tag == "!!null" {
		return nil
	}
	return o.Content[i]
}

// has tells whether a key has a value.
func (o object) has(key string) bool { return o.get(key) != nil }

// text is the value of a key that is a scalar, else "".
func (o object) text(key string) string {
	if n := o.get(key); n != nil && n.Kind == yaml.ScalarNode {
		return n.Value
	}
	return ""
}

// at is the mapping under a key.
func (o object) at(key string) object {
	if n := o.get(key); n != nil && n.Kind == yaml.MappingNode {
		return object{n}
	}
	return object{}
}

// list is the sequence under a key.
func (o object) list(key string) []*yaml.Node {
	if n := o.get(key); n != nil && n.Kind == yaml.SequenceNode {
		return n.Content
	}
	return nil
}

// need is the mapping under a key, which is made if there is none.
func (o object) need(key string) object {
	if m := o.at(key); m.Node != nil {
		return m
	}
	m := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	o.put(key, m)
	return object{m}
}

// put sets a key, at the end if it is new. Comments at the key stay.
func (o object) put(key string, value *yaml.Node) {
	if i := o.index(key); i >= 0 {
		value.LineComment, value.FootComment, value.Line = o.Content[i].LineComment, o.Content[i].FootComment, o.Content[i].Line
		o.Content[i] = value
		return
	}
	o.Content = append(o.Content, scalar(key), value)
}

// set sets a key to a string.
func (o object) set(key, value string) { o.put(key, scalar(value)) }

// take removes a key and returns its value.
func (o object) take(key string) *yaml.Node {
	i := o.index(key)
	if i < 0 {
		return nil
	}
	v := o.Content[i]
	o.Content = append(o.Content[:i-1:i-1], o.Content[i+1:]...)
	if v.Tag == "!!null" {
		return nil
	}
	return v
}

// rename gives a key another name; it stays in its place.
func (o object) rename(from, to string) bool {
	i := o.index(from)
	if i < 0 {
		return false
	}
	o.Content[i-1].Value = to
	return true
}

// keys are the keys in order.
func (o object) keys() []string {
	var out []string
	if o.Node != nil && o.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(o.Content); i += 2 {
			out = append(out, o.Content[i].Value)
		}
	}
	return out
}

// scalar is a string as a node; the encoder quotes it where it would be read as something else.
func scalar(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

// plain is a number or boolean as a node.
func plain(value, tag string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: value}
}

func truth(b bool) *yaml.Node {
	if b {
		return plain("true", "!!bool")
	}
	return plain("false", "!!bool")
}

// texts is a list of strings as a node.
func texts(values ...string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Style: yaml.FlowStyle}
	for _, v := range values {
		n.Content = append(n.Content, scalar(v))
	}
	return n
}

// mapping is a mapping of keys and nodes, in order.
func mapping(pairs ...any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for i := 0; i < len(pairs); i += 2 {
		n.Content = append(n.Content, scalar(pairs[i].(string)), pairs[i+1].(*yaml.Node))
	}
	return n
}

// clone copies a node without its comments.
func clone(n *yaml.Node) *yaml.Node {
	c := *n
	c.HeadComment, c.LineComment, c.FootComment = "", "", ""
	c.Content = make([]*yaml.Node, len(n.Content))
	for i, child := range n.Content {
		c.Content[i] = clone(child)
	}
	return &c
}

// isNumber tells whether a node is an integer.
func isNumber(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!int" }

// lowerFirst is a word with a small first letter.
func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}
