package cache

import (
	"encoding/json"
	"errors"
	"fmt"

	"weft/internal/model"
)

// line is one object of the file.
type line struct {
	Kind   model.Kind      `json:"kind"`
	Object json.RawMessage `json:"object"`
}

// outLine is a line to be written.
type outLine struct {
	Kind   model.Kind `json:"kind"`
	Object any        `json:"object"`
}

// podLine is a pod with its problem as text.
type podLine struct {
	*model.Pod
	Problem string `json:",omitempty"`
}

func toLine(kind model.Kind, o model.Object) outLine {
	p, ok := o.(*model.Pod)
	if !ok {
		return outLine{kind, o}
	}
	l := podLine{Pod: p}
	if p.Problem != nil {
		l.Problem = p.Problem.Error()
	}
	return outLine{kind, l}
}

// object decodes the line.
func (l line) object() (model.Object, error) {
	switch l.Kind {
	case model.KindNode:
		o := &model.Node{Labels: map[string]string{}}
		return o, json.Unmarshal(l.Object, o)
	case model.KindNamespace:
		o := &model.Namespace{Labels: map[string]string{}}
		return o, json.Unmarshal(l.Object, o)
	case model.KindPod:
		p := podLine{Pod: &model.Pod{Labels: map[string]string{}}}
		err := json.Unmarshal(l.Object, &p)
		if p.Problem != "" {
			p.Pod.Problem = errors.New(p.Problem)
		}
		return p.Pod, err
	case model.KindService:
		o := new(model.Service)
		return o, json.Unmarshal(l.Object, o)
	case model.KindBackends:
		o := new(model.Backends)
		return o, json.Unmarshal(l.Object, o)
	}
	return nil, fmt.Errorf("unknown kind %q", l.Kind)
}
