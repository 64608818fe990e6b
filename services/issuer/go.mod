module github.com/sallyport-pki/sallyport/services/issuer

go 1.26.0

require (
	github.com/go-acme/lego/v4 v4.35.2
	github.com/google/uuid v1.6.0
	github.com/sallyport-pki/sallyport/internal v0.0.0
	github.com/sallyport-pki/sallyport/services/internal v0.0.0
)

require (
	github.com/cenkalti/backoff/v5 v5.0.3 // indirect
	github.com/go-jose/go-jose/v4 v4.1.5 // indirect
	golang.org/x/net v0.62.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261005182115-fad411399dd8 // indirect
	google.golang.org/grpc v1.85.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace (
	github.com/google/pprof => github.com/google/pprof v0.0.0-20250317173921-a4b03ec1a45e
	github.com/sallyport-pki/sallyport/gen => ../../gen
	github.com/sallyport-pki/sallyport/internal => ../../internal
	github.com/sallyport-pki/sallyport/services/internal => ../internal
)
