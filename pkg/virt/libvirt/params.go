package libvirt

import (
	golibvirt "github.com/digitalocean/go-libvirt"
)

// Parameters for libvirt must have exactly the width it expects; any other is
// refused. These constructors are the only way they are made here.

func paramString(name, v string) golibvirt.TypedParam {
	return golibvirt.TypedParam{Field: name, Value: *golibvirt.NewTypedParamValueString(v)}
}

func paramUllong(name string, v uint64) golibvirt.TypedParam {
	return golibvirt.TypedParam{Field: name, Value: *golibvirt.NewTypedParamValueUllong(v)}
}

func paramInt(name string, v int32) golibvirt.TypedParam {
	return golibvirt.TypedParam{Field: name, Value: *golibvirt.NewTypedParamValueInt(v)}
}

// fields reads parameters by name, whatever width they came in.
type fields map[string]any

func fieldsOf(params []golibvirt.TypedParam) fields {
	f := make(fields, len(params))
	for _, p := range params {
		f[p.Field] = p.Value.I
	}
	return f
}

// number gives a count; negative values and other types count as zero.
func (f fields) number(name string) uint64 {
	switch v := f[name].(type) {
	case uint64:
		return v
	case uint32:
		return uint64(v)
	case int64:
		return uint64(max(v, 0))
	case int32:
		return uint64(max(v, 0))
	case float64:
		return uint64(max(v, 0))
	default:
		return 0
	}
}

func (f fields) text(name string) string {
	s, _ := f[name].(string)
	return s
}

func (f fields) has(name string) bool {
	_, ok := f[name]
	return ok
}
