-- Arena: two models answer the same request at once, and their answers come interleaved.

function serve(request)
    local left, right = models.left(request), models.right(request)
    for name, piece in merge { left = left.text, right = right.text } do
        emit { answer = name, text = piece }
    end
    return { answers = array { "left", "right" } }
end
