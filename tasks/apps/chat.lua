-- Plain chat: one model answers.

function serve(request)
    return models.model(request)
end
