package config

import (
	"log/slog"
	"reflect"
	"strings"
	"time"
)

// Show is a configuration for the log, field by field by the names it has in files. What has a LogValue of its own, such as a
// connection string with a password, is shown by that; what is empty is left out.
func Show(c any) slog.Value { return show(reflect.ValueOf(c)) }

func show(v reflect.Value) slog.Value {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			return slog.Value{}
		}
		v = v.Elem()
	}
	if !v.IsValid() {
		return slog.Value{}
	}
	switch own := v.Interface().(type) {
	case slog.LogValuer:
		return own.LogValue()
	case time.Duration:
		return slog.DurationValue(own)
	case interface{ String() string }:
		return slog.StringValue(own.String())
	}
	if v.Kind() != reflect.Struct {
		return slog.AnyValue(v.Interface())
	}
	var attrs []slog.Attr
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() || v.Field(i).IsZero() {
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		shown := show(v.Field(i))
		switch {
		case strings.Contains(options, "inline") && shown.Kind() == slog.KindGroup:
			attrs = append(attrs, shown.Group()...)
		case name == "":
			attrs = append(attrs, slog.Attr{Key: strings.ToLower(f.Name), Value: shown})
		default:
			attrs = append(attrs, slog.Attr{Key: name, Value: shown})
		}
	}
	return slog.GroupValue(attrs...)
}
