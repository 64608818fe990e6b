package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// JSON gives a message as proto JSON with the field names of the proto files,
// with fields of zero value, indented by two spaces. The same message always
// gives the same bytes.
func JSON(m proto.Message) ([]byte, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("writing JSON: %w", err)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil { // also undoes protojson's random white space
		return nil, fmt.Errorf("writing JSON: %w", err)
	}
	return b.Bytes(), nil
}

// WriteJSON prints one message, or, for a list, an object with the array "items".
func WriteJSON(w io.Writer, list bool, ms []proto.Message) error {
	b, err := document(list, ms)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// WriteYAML prints what WriteJSON does, as YAML with the same keys in the same order.
func WriteYAML(w io.Writer, list bool, ms []proto.Message) error {
	b, err := document(list, ms)
	if err != nil {
		return err
	}
	return writeYAML(w, b)
}

// WriteValue prints what is no message, as JSON or YAML.
func WriteValue(w io.Writer, f Format, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	if f == FormatYAML {
		return writeYAML(w, b)
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

func writeYAML(w io.Writer, b []byte) error {
	var n yaml.Node // JSON is YAML: the node keeps the order of the keys
	if err := yaml.Unmarshal(b, &n); err != nil {
		return fmt.Errorf("writing YAML: %w", err)
	}
	block(&n)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&n); err != nil {
		return fmt.Errorf("writing YAML: %w", err)
	}
	return enc.Close()
}

func document(list bool, ms []proto.Message) ([]byte, error) {
	if !list && len(ms) == 1 {
		return JSON(ms[0])
	}
	items := make([]json.RawMessage, 0, len(ms))
	for _, m := range ms {
		b, err := JSON(m)
		if err != nil {
			return nil, err
		}
		items = append(items, b)
	}
	return json.MarshalIndent(map[string]any{"items": items}, "", "  ")
}

// block turns the flow style that JSON is read as into plain YAML.
func block(n *yaml.Node) {
	if len(n.Content) > 0 {
		n.Style &^= yaml.FlowStyle
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" && plain(n.Value) {
		n.Style = 0
	}
	for _, c := range n.Content {
		block(c)
	}
}

// plain says whether the text needs no quotes, as the encoder sees it: it
// quotes "yes", which older readers of YAML would take for true.
func plain(s string) bool {
	b, err := yaml.Marshal(s)
	return err == nil && string(b) == s+"\n"
}
