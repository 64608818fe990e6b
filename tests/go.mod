module github.com/sallyport-pki/sallyport/tests

go 1.26
