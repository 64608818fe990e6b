package record

import (
	"crypto/ecdh"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/internal/pki"
)

// facts are what a record tells about a certificate.
type facts struct {
	fingerprint, serial, subject, issuer, names, notBefore, notAfter, key, spki, usages string
}

// parsedFacts are those of a certificate that crypto/x509 has read.
func parsedFacts(cert *x509.Certificate) facts {
	c := pki.Facts(cert)
	names := c.Names.DNS
	for _, ip := range c.Names.IP {
		names = append(names, ip.String())
	}
	return facts{
		fingerprint: string(c.Fingerprint), serial: c.Serial, subject: c.Subject, issuer: c.Issuer, names: strings.Join(names, ","),
		notBefore: c.NotBefore.Format(time.RFC3339), notAfter: c.NotAfter.Format(time.RFC3339),
		key: string(c.KeyType), spki: c.SPKIHash, usages: strings.Join(c.EKU, ","),
	}
}

// certificates tells what certificates say, as crypto/x509 and pki.Facts do, in a fifth of the time.
//
// The certificates of one CA are alike but for serial, times, subject, key and names, which nearly always are of a simple form.
// Those are read here. All other parts must be, byte for byte, parts of a certificate that crypto/x509 has taken: what it makes
// of a name, an algorithm or an extension depends on nothing around it. A certificate that is not so is left to crypto/x509, and its
// parts are known from then on. FuzzCertificate holds that both ways give the same.
type certificates struct {
	known   [kinds]map[string]string // what they mean
	printed map[string]string        // fingerprints of CA certificates

	// Of the certificate that is being read; the memory is kept.
	unknown    []part
	extensions []string // their OIDs
	dns        []string
	ip         []netip.Addr
	scratch    []byte
}

// part is one that must be known.
type part struct {
	kind int
	der  string
	of   func(facts) string // what it means
}

// The kinds of parts.
const (
	kindName = iota
	kindAlgorithm
	kindExtension
	kinds
)

const (
	maxKnown   = 1024 // of a kind; beyond it all are forgotten
	maxPart    = 1024 // bytes; larger ones are not remembered
	maxPrints  = 64
	maxPrinted = 4096 // bytes
)

// of tells what a certificate says. One that cannot be parsed is known by its fingerprint alone.
func (c *certificates) of(der string) facts {
	l, simple := c.simple(der)
	if simple && len(c.unknown) == 0 {
		return l
	}
	cert, err := x509.ParseCertificate([]byte(der))
	if err != nil {
		return facts{fingerprint: c.hash(der)}
	}
	l = parsedFacts(cert)
	if simple {
		for _, p := range c.unknown {
			c.learn(p.kind, p.der, p.of(l))
		}
	}
	return l
}

func (c *certificates) learn(kind int, der, meaning string) {
	if len(der) > maxPart {
		return
	}
	if c.known[kind] == nil || len(c.known[kind]) >= maxKnown {
		c.known[kind] = map[string]string{}
	}
	c.known[kind][strings.Clone(der)] = meaning
}

// look gives what a part means, and notes it as unknown where that is not known.
func (c *certificates) look(kind int, der string, of func(facts) string) string {
	meaning, ok := c.known[kind][der]
	if !ok {
		c.unknown = append(c.unknown, part{kind, der, of})
	}
	return meaning
}

// prints are the fingerprints of CA certificates, which come again and again.
func (c *certificates) prints(chain []string) string {
	all := make([]string, len(chain))
	for i, der := range chain {
		known, ok := c.printed[der]
		if !ok {
			if c.printed == nil || len(c.printed) >= maxPrints {
				c.printed = map[string]string{}
			}
			known = c.hash(der)
			if len(der) <= maxPrinted {
				c.printed[strings.Clone(der)] = known
			}
		}
		all[i] = known
	}
	return strings.Join(all, ",")
}

// hash is pki.FingerprintOf.
func (c *certificates) hash(der string) string {
	c.scratch = append(c.scratch[:0], der...)
	sum := sha256.Sum256(c.scratch)
	return hex.EncodeToString(sum[:])
}

// The tags of DER.
const (
	tagBool       = 0x01
	tagInteger    = 0x02
	tagBits       = 0x03
	tagOctets     = 0x04
	tagOID        = 0x06
	tagUTF8       = 0x0c
	tagPrintable  = 0x13
	tagUTCTime    = 0x17
	tagSequence   = 0x30
	tagSet        = 0x31
	tagDNS        = 0x82 // of a GeneralName
	tagIP         = 0x87
	tagVersion    = 0xa0
	tagExtensions = 0xa3
	versionThree  = "\x02\x01\x02"
	oidCommonName = "\x06\x03\x55\x04\x03"
	oidKeyID      = "\x06\x03\x55\x1d\x0e" // of the subject
	oidNames      = "\x06\x03\x55\x1d\x11"
	oidPurposes   = "\x06\x03\x55\x1d\x25"
	oidTimestamps = "\x06\x0a\x2b\x06\x01\x04\x01\xd6\x79\x02\x04\x02" // RFC 6962: crypto/x509 does not look into it
	boolTrue      = "\xff"
	wholeBytes    = 0 // unused bits of a string of bits
)

// simple reads a certificate of the usual form. Of parts that are not known it tells in c.unknown.
func (c *certificates) simple(data string) (l facts, ok bool) {
	c.unknown, c.extensions = c.unknown[:0], c.extensions[:0]
	whole := der{rest: data}
	certificate := whole.only(tagSequence)
	body := certificate.inside(tagSequence)
	algorithm := certificate.element(tagSequence)
	signature := certificate.inside(tagBits)
	if !certificate.ends() || signature.rest == "" || signature.rest[0] != wholeBytes {
		return l, false
	}
	version := body.inside(tagVersion)
	serial := body.inside(tagInteger)
	inner := body.element(tagSequence)
	issuer := body.element(tagSequence)
	validity := body.inside(tagSequence)
	subject := body.element(tagSequence)
	key := body.element(tagSequence)
	wrapped := body.inside(tagExtensions)
	extensions := wrapped.only(tagSequence)
	if !body.ends() || extensions.failed || version.rest != versionThree || inner != algorithm {
		return l, false
	}
	c.look(kindAlgorithm, algorithm, func(facts) string { return "" })
	l.issuer = c.name(issuer, func(l facts) string { return l.issuer })
	l.subject = c.name(subject, func(l facts) string { return l.subject })
	l.serial, ok = number(serial.rest)
	before, okBefore := validity.time()
	after, okAfter := validity.time()
	if !ok || !okBefore || !okAfter || !validity.ends() {
		return l, false
	}
	l.notBefore, l.notAfter = before, after
	if l.key, ok = c.keyType(key); !ok {
		return l, false
	}
	for extensions.rest != "" {
		if !c.extension(&l, extensions.element(tagSequence)) {
			return l, false
		}
	}
	l.spki, l.fingerprint = c.hash(key), c.hash(data)
	return l, !extensions.failed
}

// name gives the text of a name. One that is nothing but a plain common name needs not be known.
func (c *certificates) name(element string, of func(facts) string) string {
	all := der{rest: element}
	names := all.only(tagSequence)
	set := names.only(tagSet)
	attribute := set.only(tagSequence)
	if attribute.element(tagOID) == oidCommonName && attribute.rest != "" {
		tag := attribute.rest[0]
		value := attribute.only(tag)
		if !value.failed && (tag == tagUTF8 || tag == tagPrintable) && plain(value.rest) {
			return "CN=" + value.rest
		}
	}
	return c.look(kindName, element, of)
}

// extension reads one extension, or looks whether it is known.
func (c *certificates) extension(l *facts, element string) bool {
	e := der{rest: element}
	e = e.only(tagSequence)
	oid := e.element(tagOID)
	if e.failed || slices.Contains(c.extensions, oid) {
		return false
	}
	c.extensions = append(c.extensions, oid)
	switch oid {
	case oidNames:
		return c.names(l, e)
	case oidKeyID:
		value := e.only(tagOctets)
		return !value.only(tagOctets).failed && !value.failed
	case oidTimestamps:
		return !e.only(tagOctets).failed
	case oidPurposes:
		l.usages = c.look(kindExtension, element, func(l facts) string { return l.usages })
	default:
		c.look(kindExtension, element, func(facts) string { return "" })
	}
	return true
}

// names reads the subject's other names: such of hosts, in lower case, and addresses.
func (c *certificates) names(l *facts, e der) bool {
	if e.rest != "" && e.rest[0] == tagBool && e.inside(tagBool).rest != boolTrue {
		return false
	}
	value := e.only(tagOctets)
	all := value.only(tagSequence)
	c.dns, c.ip = c.dns[:0], c.ip[:0]
	for all.rest != "" {
		switch all.rest[0] {
		case tagDNS:
			name := all.inside(tagDNS).rest
			if !host(name) {
				return false
			}
			c.dns = append(c.dns, name)
		case tagIP:
			c.scratch = append(c.scratch[:0], all.inside(tagIP).rest...)
			ip, ok := netip.AddrFromSlice(c.scratch)
			if !ok {
				return false
			}
			c.ip = append(c.ip, ip.Unmap())
		default:
			return false
		}
	}
	if all.failed {
		return false
	}
	slices.Sort(c.dns)
	slices.SortFunc(c.ip, netip.Addr.Compare)
	c.dns = slices.Compact(c.dns)
	for _, ip := range slices.Compact(c.ip) {
		c.dns = append(c.dns, ip.String())
	}
	l.names = strings.Join(c.dns, ",")
	return true
}

// der reads the elements of a string of DER one after the other. After a failure everything it gives is empty, and what was inside
// has failed, too.
type der struct {
	rest   string
	failed bool
}

// next reads an element with this tag.
func (d *der) next(tag byte) (element, content string) {
	s := d.rest
	if d.failed || len(s) < 2 || s[0] != tag {
		return d.fail()
	}
	n, at := int(s[1]), 2
	switch {
	case n == 0x81 && len(s) > 2 && s[2] >= 0x80:
		n, at = int(s[2]), 3
	case n == 0x82 && len(s) > 3 && s[2] > 0:
		n, at = int(s[2])<<8|int(s[3]), 4
	case n >= 0x80: // longer than a certificate, or not written in the shortest way
		return d.fail()
	}
	if len(s)-at < n {
		return d.fail()
	}
	d.rest = s[at+n:]
	return s[:at+n], s[at : at+n]
}

func (d *der) fail() (element, content string) {
	d.rest, d.failed = "", true
	return "", ""
}

// element reads an element, of which it gives everything.
func (d *der) element(tag byte) string {
	element, _ := d.next(tag)
	return element
}

// inside reads an element, of which it gives the content.
func (d *der) inside(tag byte) der {
	_, content := d.next(tag)
	return der{rest: content, failed: d.failed}
}

// only is inside for the last element.
func (d *der) only(tag byte) der {
	content := d.inside(tag)
	if d.rest != "" {
		d.fail()
		content = der{failed: true}
	}
	return content
}

// ends says whether all was read, without a failure.
func (d *der) ends() bool { return d.rest == "" && !d.failed }

// time reads a UTCTime of this century and gives it as RFC 3339 has it.
func (d *der) time() (string, bool) {
	s := d.inside(tagUTCTime).rest // YYMMDDhhmmssZ
	if len(s) != 13 || s[12] != 'Z' {
		return "", false
	}
	var parts [6]int
	for i := range parts {
		high, low := s[2*i]-'0', s[2*i+1]-'0'
		if high > 9 || low > 9 {
			return "", false
		}
		parts[i] = int(high)*10 + int(low)
	}
	year, month, day := parts[0], parts[1], parts[2]
	if year >= 50 || month < 1 || month > 12 || day < 1 || day > days(year, month) || parts[3] > 23 || parts[4] > 59 || parts[5] > 59 {
		return "", false
	}
	return "20" + s[0:2] + "-" + s[2:4] + "-" + s[4:6] + "T" + s[6:8] + ":" + s[8:10] + ":" + s[10:13], true
}

// days of a month of this century.
func days(year, month int) int {
	switch {
	case month == 2 && year%4 == 0:
		return 29
	case month == 2:
		return 28
	case month == 4 || month == 6 || month == 9 || month == 11:
		return 30
	}
	return 31
}

// number gives a positive INTEGER in hexadecimal.
func number(content string) (string, bool) {
	if content == "" || content[0] >= 0x80 || content[0] == 0 && (len(content) == 1 || content[1] < 0x80) {
		return "", false
	}
	return strings.TrimLeft(hex.EncodeToString([]byte(content)), "0"), true
}

// The public keys of usual types: what stands before the key itself, and its length.
var keyForms = []struct {
	before string
	length int
	kind   pki.KeyType
	valid  func([]byte) bool
}{
	{"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00", 65, pki.ECDSAP256, onCurve(ecdh.P256())},
	{"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00", 97, pki.ECDSAP384, onCurve(ecdh.P384())},
	{"\x30\x82\x01\x22\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x03\x82\x01\x0f\x00\x30\x82\x01\x0a\x02\x82\x01\x01\x00", 256 + 5, pki.RSA2048, usualRSA},
	{"\x30\x82\x01\xa2\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x03\x82\x01\x8f\x00\x30\x82\x01\x8a\x02\x82\x01\x81\x00", 384 + 5, pki.RSA3072, usualRSA},
	{"\x30\x82\x02\x22\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x03\x82\x02\x0f\x00\x30\x82\x02\x0a\x02\x82\x02\x01\x00", 512 + 5, pki.RSA4096, usualRSA},
}

func onCurve(c ecdh.Curve) func([]byte) bool {
	return func(point []byte) bool {
		_, err := c.NewPublicKey(point)
		return err == nil
	}
}

// usualRSA says whether a modulus has all its bits and is followed by the exponent 65537.
func usualRSA(key []byte) bool {
	return key[0] >= 0x80 && string(key[len(key)-5:]) == "\x02\x03\x01\x00\x01"
}

// keyType reads a SubjectPublicKeyInfo.
func (c *certificates) keyType(element string) (string, bool) {
	for _, form := range keyForms {
		if key, ok := strings.CutPrefix(element, form.before); ok && len(key) == form.length {
			c.scratch = append(c.scratch[:0], key...)
			return string(form.kind), form.valid(c.scratch)
		}
	}
	return "", false
}

// plain says whether a text is a common name that is shown as it is, whatever its type.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; !letter(c) && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return s != ""
}

// host says whether a text looks like the name of a host, in lower case.
func host(s string) bool {
	for i := range len(s) {
		if c := s[i]; !letter(c) && c != '*' && c != '_' {
			return false
		}
	}
	return s != ""
}

func letter(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '.' }
